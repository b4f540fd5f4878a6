"""What keyd tells the monitor of secrets: which connections have the same one."""

import struct


def test_each_connection_names_the_first_one_with_its_secret_and_nothing_of_it(build):
    names = ["a", "b", "c", "d", "e"]
    gateway = build.gateway(*(build.connection(name) for name in names))
    secrets = build.Secrets(a=b"one secret", b=b"another one", c=b"one secret", d=b"a third", e=b"another one")
    told = build.Side(gateway, secrets).service.same_secret()
    assert struct.unpack(">5H", told) == (0, 1, 0, 3, 1)
    others = build.Secrets(a=b"1", b=b"2", c=b"1", d=b"3", e=b"2")
    assert build.Side(gateway, others).service.same_secret() == told


def test_a_connection_without_a_secret_stands_for_itself(build):
    gateway = build.gateway(build.connection("a"), build.connection("b"))
    assert struct.unpack(">2H", build.Side(gateway, build.Secrets()).service.same_secret()) == (0, 1)
