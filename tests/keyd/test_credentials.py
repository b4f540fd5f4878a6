"""secrets.toml (CONTRACT.md): what is read, what is refused and where, and which key a connection gets."""

import ipaddress
import os

import pytest
from effort import instructions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keyd import credentials
from keyd.credentials import Credentials, parse_secret, strength
from keyd.secret import Secret
from privsep.config.problems import ConfigError
from privsep.iana import IdType
from privsep.types import Identity

STRONG = "hex:" + bytes(range(16)).hex()


@pytest.fixture
def gateway(build):
    return build.gateway(build.connection(), build.connection("london", remote_id=None))


@pytest.fixture
def read(gateway):
    return lambda text: Credentials.parse(text, "secrets.toml", gateway)


@pytest.fixture
def problems(read):
    def find(text: str) -> str:
        with pytest.raises(ConfigError) as caught:
            read(text)
        return str(caught.value)

    return find


def psk(secret: str, **keys) -> str:
    lines = ["[[psk]]", f'secret = "{secret}"']
    lines += [f"{key} = {list(value) if not isinstance(value, str) else repr(value)}" for key, value in keys.items()]
    return "\n".join(lines).replace("'", '"') + "\n"


@pytest.mark.parametrize(
    ("text", "octets"),
    [
        ("a long random passphrase", b"a long random passphrase"),
        ("grüße", "grüße".encode()),
        ("hex:00ff10", b"\x00\xff\x10"),
        ("base64:AP8Q", b"\x00\xff\x10"),
        ("0x1234", b"0x1234"),
    ],
)
def test_secrets_are_text_hex_or_base64(text, octets):
    assert bytes(parse_secret(text)) == octets


@pytest.mark.parametrize("text", ["", "hex:", "hex:0", "hex:zz", "base64:", "base64:A", "base64:A!==", "x" * 1025])
def test_secrets_that_are_none_are_refused_without_being_quoted(problems, text):
    found = problems(psk(text, connection="paris"))
    assert found.startswith("secrets.toml:2: secret: ")
    assert "would be right" in found
    assert len(text) < 5 or text not in found


def test_a_connections_own_entry_wins_over_ids(read, gateway):
    found = read(psk("of ids", ids=["gw1.example.org", "gw2.example.org"]) + psk("of the name", connection="paris"))
    assert bytes(found.psk_for(gateway.connection("paris"))) == b"of the name"


@pytest.mark.parametrize(
    "ids",
    [
        ["gw1.example.org", "gw2.example.org"],
        ["gw2.example.org", "gw1.example.org"],
        ["192.0.2.1", "gw2.example.org"],
        ["192.0.2.2", "192.0.2.1"],
        ["fqdn:gw2.example.org"],
        ["192.0.2.2"],
        ["gw1.example.org"],
        ["gw1.example.org", "gw2.example.org", "gw3.example.org"],
    ],
)
def test_ids_match_in_either_order_and_addresses_count_as_identities(read, gateway, ids):
    assert bytes(read(psk("found", ids=ids)).psk_for(gateway.connection("paris"))) == b"found"


@pytest.mark.parametrize(
    "ids",
    [
        ["gw1.example.org", "gw3.example.org"],
        ["gw3.example.org", "gw2.example.org"],
        ["gw3.example.org"],
        ["192.0.2.9", "192.0.2.1"],
        ["email:gw1@example.org"],
    ],
)
def test_ids_of_others_do_not_match(read, gateway, ids):
    assert read(psk("of others", ids=ids)).psk_for(gateway.connection("paris")) is None


def test_of_several_entries_the_most_specific_is_taken_whatever_the_order(read, gateway):
    entries = [
        psk("own only", ids=["gw1.example.org"]),
        psk("peer's address", ids=["192.0.2.2"]),
        psk("addresses", ids=["192.0.2.1", "192.0.2.2"]),
        psk("peer's identity", ids=["gw2.example.org"]),
        psk("identities", ids=["gw1.example.org", "gw2.example.org"]),
    ]
    expected = ["own only", "peer's address", "addresses", "peer's identity", "identities"]
    for count in range(1, len(entries) + 1):
        for order in (entries[:count], entries[:count][::-1]):
            text = "".join(order).replace('peer"s', "peer's")
            assert bytes(read(text).psk_for(gateway.connection("paris"))).decode() == expected[count - 1]


def test_a_connection_for_anybody_finds_the_entry_of_its_own_identity(build):
    roaming = build.connection(remote=build.ANY, remote_id=None)
    for text, expected in (
        (psk("group", ids=["gw1.example.org"]), b"group"),
        (psk("pair", ids=["gw1.example.org", "192.0.2.2"]), None),
    ):
        found = Credentials.parse(text, "secrets.toml", build.gateway(roaming))
        assert found.psk_for(roaming) == expected


def test_every_problem_is_told_with_its_line(problems):
    found = problems(
        """
[[psk]]
ids = ["gw1.example.org", "not an identity"]
secret = "hex:0"
colour = "red"

[[psk]]
connection = "rome"
ids = ["gw1.example.org"]

[[private_key]]
use = "both"

[surplus]
""".lstrip()
    )
    assert [int(line.split(":")[1]) for line in found.splitlines()] == [2, 3, 4, 6, 7, 7, 10, 10, 11, 13]
    for hint in ("identity", "hexadecimal", "unknown key 'colour'", "'secret' is missing", "rome", "'both'", "surplus"):
        assert hint in found


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (psk(STRONG), "'ids' or 'connection' is missing"),
        (psk(STRONG, ids=["gw1.example.org"], connection="paris"), "both"),
        (psk(STRONG, connection="paris") * 2, "a second secret for the same"),
        (
            psk(STRONG, ids=["gw1.example.org", "gw2.example.org"])
            + psk("b", ids=["gw2.example.org", "gw1.example.org"]),
            "a second secret",
        ),
        ("[[private_key]]\nfile = 'k'\n", "'connection' or 'certificate' is missing"),
        ("[[private_key]]\nconnection = 'paris'\n", "'file' is missing"),
        ("[[private_key]]\nconnection = 'paris'\nfile = ''\n", "no file name"),
        ("psk = 3\n", "a whole number"),
    ],
)
def test_entries_that_contradict_themselves_are_refused(problems, text, hint):
    assert hint in problems(text)


def test_private_keys_are_read_and_reported_as_unused(read):
    found = read('[[private_key]]\nconnection = "paris"\nfile = "gw1.key"\npassphrase = "x"\nuse = "encryption"\n')
    assert "secrets.toml:3: no authentication method that uses a private key is offered yet" in found.warnings


@pytest.mark.parametrize(
    ("text", "weak"), [("secret123", True), ("a" * 60, True), (STRONG, False), ("hex:" + "00" * 32, True)]
)
def test_weak_secrets_are_warned_of_and_accepted(read, gateway, text, weak):
    found = read(psk(text, connection="paris"))
    assert found.psk_for(gateway.connection("paris")) is not None
    warnings = [warning for warning in found.warnings if "bits" in warning]
    assert [warning.startswith("secrets.toml:2: ") for warning in warnings] == [True] * weak
    assert text not in "".join(found.warnings)


def test_a_connection_that_no_secret_fits_is_a_problem_of_the_file(file, gateway):
    assert [problem.line for problem in Credentials.parse(psk(STRONG, connection="paris"), "s", gateway).missing] == [1]
    file.write_text(psk(STRONG, connection="paris"))
    with pytest.raises(ConfigError, match='no secret fits connection "london"'):
        credentials.load(str(file), gateway)


def test_random_secrets_of_128_bits_are_never_called_weak():
    for _ in range(300):
        assert strength(Secret(os.urandom(16))) >= 128
        assert strength(parse_secret("base64:" + __import__("base64").b64encode(os.urandom(24)).decode())) >= 128


def test_secrets_do_not_show_in_reprs(read):
    found = read(psk("visible?", connection="paris"))
    assert "visible" not in repr(found) + repr(vars(found)) + str(Secret(b"visible"))
    assert "visible" not in f"{Secret(b'visible')} {[Secret(b'visible')]!r}"


def test_a_wiped_secret_is_empty_and_none_is_pickled():
    import pickle

    secret = Secret(b"visible")
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    secret.wipe()
    assert secret == b""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "secrets.toml"
    path.write_text(psk(STRONG, connection="paris"))
    path.chmod(0o600)
    return path


@pytest.mark.root
@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_file_that_only_root_reads_is_loaded(file, gateway, mode):
    file.write_text(file.read_text() + psk(STRONG, connection="london"))
    file.chmod(mode)
    assert credentials.load(str(file), gateway).psk_for(gateway.connection("paris")) == bytes(range(16))


@pytest.mark.root
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o700, 0o620, 0o602, 0o4600])
def test_a_file_that_others_could_read_or_write_is_refused(file, gateway, mode):
    file.chmod(mode)
    with pytest.raises(ConfigError, match=rf"secrets.toml:1: has mode {mode:04o}; 0600 or stricter would be right"):
        credentials.load(str(file), gateway)


@pytest.mark.root
def test_a_file_of_somebody_elses_is_refused(file, gateway):
    os.chown(file, 12345, -1)
    with pytest.raises(ConfigError, match="belongs to uid 12345; root must own it"):
        credentials.load(str(file), gateway)


def test_what_is_no_file_or_no_text_is_refused(tmp_path, gateway):
    with pytest.raises(ConfigError, match="cannot be read"):
        credentials.load(str(tmp_path / "absent"), gateway)
    with pytest.raises(ConfigError):
        credentials.load(str(tmp_path), gateway)


@pytest.mark.root
def test_octets_that_are_not_utf8_are_refused(file, gateway):
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        credentials.load(str(file), gateway)


def test_an_identity_of_an_address_matches_only_that_address(read, gateway):
    address = Identity(IdType.IPV4_ADDR, ipaddress.ip_address("192.0.2.2").packed)
    assert bytes(read(psk("x", ids=[f"ipv4:{address}"])).psk_for(gateway.connection("paris"))) == b"x"


IDS = [Identity(IdType.FQDN, name) for name in (b"a", b"b", b"c")] + [
    Identity.of_address(ipaddress.ip_address(each)) for each in ("192.0.2.1", "192.0.2.2")
]


def looked_up(psks, connection):
    """The key by a look at every entry: how well its ids fit (peer, ours), identities before addresses."""

    def weight(psk, identity, address):
        if identity in psk.ids:
            return 2
        return int(isinstance(address, ipaddress.IPv4Address) and Identity.of_address(address) in psk.ids)

    def fits(psk):
        remote = weight(psk, connection.remote_id, connection.remote)
        local = weight(psk, connection.local_id, connection.local)
        return (remote, local) if len(psk.ids) == 1 or (remote and local) else (0, 0)

    best = max(psks, key=fits, default=None)
    return best.secret if best is not None and any(fits(best)) else None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.frozensets(st.sampled_from(IDS), min_size=1, max_size=3), max_size=8, unique=True),
    st.sampled_from([None, *IDS]),
    st.sampled_from(IDS),
    st.sampled_from([None, "192.0.2.1"]),
    st.sampled_from([None, "192.0.2.2", "192.0.2.1"]),
)
def test_the_key_is_that_of_a_look_at_every_entry(build, entries, remote_id, local_id, local, remote):
    psks = tuple(
        credentials.Psk(ids=ids, connection=None, secret=Secret(b"%d" % number)) for number, ids in enumerate(entries)
    )
    connection = build.connection(
        local=local and ipaddress.ip_address(local),
        remote=ipaddress.ip_address(remote) if remote else build.ANY,
        remote_id=remote_id,
        local_id=local_id,
    )
    found, expected = Credentials(psks).psk_for(connection), looked_up(psks, connection)
    assert (found and bytes(found)) == (expected and bytes(expected))


@pytest.mark.parametrize("named", [True, False], ids=["by name", "by ids"])
def test_loading_four_times_as_many_secrets_costs_about_four_times_as_much(build, named):
    def cost(size):
        peers = [f"peer{number}.example.org" for number in range(size)]
        gateway = build.gateway(
            *(build.connection(peer, remote_id=Identity(IdType.FQDN, peer.encode())) for peer in peers)
        )
        entries = ({"connection": peer} if named else {"ids": ["gw1.example.org", peer]} for peer in peers)
        text = "".join(psk(STRONG, **each) for each in entries)
        return instructions(lambda: Credentials.parse(text, "secrets.toml", gateway))

    assert cost(160) < 5 * cost(40)
