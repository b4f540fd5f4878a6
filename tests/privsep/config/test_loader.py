import ipaddress
import textwrap

import pytest
from effort import instructions
from hypothesis import given
from hypothesis import strategies as st

from privsep.algorithms import ChildSuite, IkeSuite
from privsep.config import loader, model
from privsep.config.names import Names, RemoteName
from privsep.config.problems import ConfigError
from privsep.iana import IdType, ProtocolId
from privsep.log import Level
from privsep.types import Auth, Identity, Mode, TrafficSelector

CONTRACT = """\
[gateway]
listen    = ["192.0.2.1"]
dataplane = "auto"

[connection.paris]
version   = "ikev1"
mode      = "main"
local     = "192.0.2.1"
remote    = "192.0.2.2"
local_id  = "gw1.example.org"
remote_id = "gw2.example.org"
auth      = "psk"
ike       = ["aes256-sha256-modp2048", "aes128-sha1-modp2048"]
lifetime  = "8h"
encap     = "auto"

[connection.paris.child.lan]
local_ts  = ["10.1.0.0/16"]
remote_ts = ["10.2.0.0/16"]
mode      = "tunnel"
esp       = ["aes256gcm16-modp2048", "aes128-sha256"]
lifetime  = "1h"
start     = "up"
"""

SMALL = """\
[connection.a]
local = "192.0.2.1"
remote = "192.0.2.2"
[connection.a.child.c]
local_ts = ["10.1.0.0/16"]
remote_ts = ["10.2.0.0/16"]
"""


def selector(text: str, protocol: int = 0, port: int = 0) -> TrafficSelector:
    return TrafficSelector(ipaddress.ip_network(text), protocol, port)


def changed(number: int, value: str) -> str:
    """CONTRACT with another value on that line."""
    lines = CONTRACT.splitlines()
    lines[number - 1] = f"{lines[number - 1].split('=')[0]}= {value}"
    return "\n".join(lines) + "\n"


def test_the_contract_s_example_loads(gateway):
    assert gateway(CONTRACT) == model.Gateway(
        listen=(ipaddress.ip_address("192.0.2.1"),),
        dataplane=model.DataplaneChoice.AUTO,
        users=model.Users(worker=(501, 601), keyd=(502, 602), userspace=(503, 603)),
        absent=frozenset(),
        connections=(
            model.Connection(
                name="paris",
                local=ipaddress.ip_address("192.0.2.1"),
                remote=ipaddress.ip_address("192.0.2.2"),
                local_id=Identity(IdType.FQDN, b"gw1.example.org"),
                remote_id=Identity(IdType.FQDN, b"gw2.example.org"),
                auth=Auth.PSK,
                suites=(IkeSuite.parse("aes256-sha256-modp2048"), IkeSuite.parse("aes128-sha1-modp2048")),
                lifetime=28800,
                encap=model.Encap.AUTO,
                children=(
                    model.Child(
                        name="lan",
                        local_ts=(selector("10.1.0.0/16"),),
                        remote_ts=(selector("10.2.0.0/16"),),
                        mode=Mode.TUNNEL,
                        suites=(ChildSuite.parse("aes256gcm16-modp2048"), ChildSuite.parse("aes128-sha256")),
                        lifetime=3600,
                        start=model.Start.UP,
                    ),
                ),
            ),
        ),
    )


def test_what_is_left_away_has_the_documented_default(gateway):
    loaded = gateway(SMALL)
    connection = loaded.connections[0]
    child = connection.children[0]
    assert (loaded.listen, loaded.dataplane, loaded.absent) == ((), model.DataplaneChoice.AUTO, frozenset())
    assert loaded.egress is model.Egress.OPEN
    assert loaded.on_stop is model.OnStop.BLOCK
    assert connection.local_id == Identity.of_address(ipaddress.ip_address("192.0.2.1"))
    assert connection.remote_id == Identity.of_address(ipaddress.ip_address("192.0.2.2"))
    assert connection.auth is Auth.PSK
    assert [str(suite) for suite in connection.suites] == list(loader.DEFAULT_IKE)
    assert [str(suite) for suite in child.suites] == list(loader.DEFAULT_ESP)
    assert (connection.lifetime, child.lifetime) == (8 * 3600, 3600)
    assert (connection.encap, child.mode, child.start) == (model.Encap.AUTO, Mode.TUNNEL, model.Start.WAIT)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("aes-sha", "aes128-sha1"),
        ("camellia-sha2_256", "camellia128-sha256"),
        ("aes128gcm64", "aes128gcm8"),
        ("aes192gcm96", "aes192gcm12"),
        ("aes256gcm128", "aes256gcm16"),
        ("aes256gcm", "aes256gcm16"),
        ("aes128ccm64-modp2048", "aes128ccm8-modp2048"),
        ("AES256CCM96-x25519-ESN", "aes256ccm12-curve25519-esn"),
        ("aes128ccm-noesn", "aes128ccm16"),
        ("null-md5", "null-md5"),
        ("3des-aesxcbc-ecp256", "3des-aesxcbc-ecp256"),
        ("aes256gmac", "aes256gmac"),
    ],
)
def test_strongswans_names_of_esp_proposals(gateway, theirs, ours):
    (suite,) = gateway(SMALL + f"esp = ['{theirs}']").connections[0].children[0].suites
    assert (str(suite), suite.protocol) == (ours, ProtocolId.ESP)


def test_ah_proposals(gateway):
    text = SMALL + "ah = ['sha256-modp2048-esn', 'sha1', 'aesxcbc', 'md5-noesn']"
    suites = gateway(text).connections[0].children[0].suites
    assert [str(suite) for suite in suites] == ["sha256-modp2048-esn", "sha1", "aesxcbc", "md5"]
    assert {suite.protocol for suite in suites} == {ProtocolId.AH}


@pytest.mark.parametrize("text", ["", "# nothing yet\n", '[gateway]\ndataplane = "auto"\n', "[connection]\n"])
def test_an_empty_configuration_says_what_is_missing(problems, text):
    told = "nothing is configured; add a [connection.NAME] with a child, or a [shunt.NAME]"
    assert problems(text) == [(1, told)]
    # where more is wrong, that comes first: a name that is misspelt, say
    assert told not in dict(problems(text + "[gatway]\n")).values()


def test_a_gateway_with_shunts_alone_is_complete(gateway):
    text = "[shunt.a]\naction = 'drop'\nlocal_ts = ['10.1.0.0/16']\nremote_ts = ['10.9.0.0/16']\n"
    assert [shunt.name for shunt in gateway(text).shunts] == ["a"]


def test_a_gateway_without_users_of_its_own_falls_back_to_numbers_that_nobody_has():
    users = loader.load(SMALL, "f", Names({})).users
    ids = (users.worker, users.keyd, users.userspace)
    assert len(set(ids)) == 3
    assert all(uid == gid > 1_879_048_191 for uid, gid in ids)


@pytest.mark.parametrize(
    ("number", "value", "read", "expected"),
    [
        (3, '"kernel"', lambda g: g.dataplane, model.DataplaneChoice.KERNEL),
        (3, '"userspace"', lambda g: g.dataplane, model.DataplaneChoice.USERSPACE),
        (9, '"any"', lambda g: g.connections[0].remote, model.RemoteAny()),
        (9, '"198.51.100.0/24"', lambda g: g.connections[0].remote, ipaddress.ip_network("198.51.100.0/24")),
        (9, '"gw2.example.net"', lambda g: g.connections[0].remote, RemoteName("gw2.example.net", 4)),
        (11, '"any"', lambda g: g.connections[0].remote_id, None),
        (11, '"keyid:00ff"', lambda g: g.connections[0].remote_id, Identity(IdType.KEY_ID, b"\x00\xff")),
        (13, '["AES-SHA-MODP1536"]', lambda g: str(g.connections[0].suites[0]), "aes128-sha1-modp1536"),
        (13, '["aes192-sha2_512-x25519"]', lambda g: str(g.connections[0].suites[0]), "aes192-sha512-curve25519"),
        (21, '["aes256gcm128"]', lambda g: str(g.connections[0].children[0].suites[0]), "aes256gcm16"),
        (15, '"force"', lambda g: g.connections[0].encap, model.Encap.FORCE),
        (15, '"off"', lambda g: g.connections[0].encap, model.Encap.OFF),
        (23, '"trap"', lambda g: g.connections[0].children[0].start, model.Start.TRAP),
        (18, '["10.1.0.0/16[tcp/443]"]', lambda g: g.connections[0].children[0].local_ts,
         (selector("10.1.0.0/16", 6, 443),)),
        (19, '["10.2.0.0/16", "10.3.0.1"]', lambda g: g.connections[0].children[0].remote_ts,
         (selector("10.2.0.0/16"), selector("10.3.0.1/32"))),
    ],
)  # fmt: skip
def test_each_key_says_what_it_says(gateway, number, value, read, expected):
    text = changed(number, value)
    assert read(gateway(text.replace('start     = "up"', "") if number == 9 else text)) == expected


def test_the_gateway_s_own_keys(gateway):
    loaded = gateway(
        "[gateway]\nlisten = ['192.0.2.1', '2001:db8::1']\nabsent = ['landlock', 'mlock', 'netns']\n"
        "egress = 'restricted'\non_stop = 'remove'\n"
        f"users = {{ worker = 61001, keyd = '61002', userspace = 'alice' }}\n{SMALL}"
    )
    assert loaded.listen == (ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("2001:db8::1"))
    assert loaded.absent == frozenset(model.Layer)
    assert loaded.egress is model.Egress.RESTRICTED
    assert loaded.on_stop is model.OnStop.REMOVE
    assert loaded.users == model.Users(worker=(61001, 61001), keyd=(61002, 61002), userspace=(1000, 1000))


def test_the_log_has_a_level_and_a_connection_may_have_another(gateway):
    assert gateway(SMALL).levels == (Level.INFO, {})
    own = SMALL.replace("[connection.a]\n", '[connection.a]\nlog = "debug"\n')
    assert gateway('[gateway]\nlog = "warning"\n' + own).levels == (Level.WARNING, {"a": Level.DEBUG})


def test_a_misspelt_egress_is_refused_and_not_taken_for_open():
    with pytest.raises(ConfigError, match=r"g:2: .*'restrict' is not known; did you mean 'restricted'\?"):
        loader.load('[gateway]\negress = "restrict"\n' + SMALL, "g", Names({}))


def test_a_name_stays_a_name_of_the_ip_version_of_local(gateway):
    """Loading asks nobody: a name that does not resolve is no mistake of the configuration."""
    text = (
        '[connection.a]\n{local}remote = "gw2.example.net"\nlocal_id = "gw1.example.net"\n'
        '[connection.a.child.c]\nlocal_ts = ["2001:db8:1::/48"]\nremote_ts = ["2001:db8:2::/48"]\n'
    )
    for local, version in (('local = "2001:db8::1"\n', 6), ('local = "192.0.2.1"\n', 4), ("", None)):
        (connection,) = gateway(text.format(local=local)).connections
        assert (connection.remote.name, connection.remote.version) == ("gw2.example.net", version)
        assert connection.remote.address is None
        # who it is does not change with its address
        assert connection.remote_id == Identity(IdType.FQDN, b"gw2.example.net")


def test_transport_mode_needs_an_address_that_stays(problems):
    text = SMALL.replace('remote = "192.0.2.2"', 'remote = "gw2.example.net"') + 'mode = "transport"\n'
    told = "transport mode is between two addresses, and a name has none for good; use tunnel"
    assert told in [each for _, each in problems(text)]


def test_transport_mode_protects_the_outer_addresses_by_default_rfc4301_4_1(gateway):
    child = (
        gateway(
            '[connection.a]\nlocal = "192.0.2.1"\nremote = "192.0.2.2"\n[connection.a.child.c]\nmode = "transport"\n'
        )
        .connections[0]
        .children[0]
    )
    assert (child.local_ts, child.remote_ts) == ((selector("192.0.2.1/32"),), (selector("192.0.2.2/32"),))


def test_transport_mode_takes_protocols_and_ports_on_the_outer_addresses(gateway):
    child = (
        gateway(
            '[connection.a]\nlocal = "192.0.2.1"\nremote = "any"\nremote_id = "any"\n'
            '[connection.a.child.c]\nmode = "transport"\n'
            'local_ts = ["192.0.2.1[udp/1701]"]\nremote_ts = ["0.0.0.0/0[udp]"]\n'
        )
        .connections[0]
        .children[0]
    )
    assert child.local_ts == (selector("192.0.2.1/32", 17, 1701),)


# line numbers are those of CONTRACT
@pytest.mark.parametrize(
    ("number", "value", "line", "problem"),
    [
        (2, '["192.0.2.300"]', 2, "'192.0.2.300' is no address; \"192.0.2.1\" or"),
        (2, '["0.0.0.0"]', 2, "'0.0.0.0' is not the address of one host"),
        (2, '["224.0.0.1"]', 2, "'224.0.0.1' is not the address of one host"),
        (2, '["fe80::1%eth0"]', 2, "'fe80::1%eth0' has a zone"),
        (2, '["::ffff:192.0.2.1"]', 2, "'::ffff:192.0.2.1' has a zone or hides an IPv4 address"),
        (2, '["192.0.2.9"]', 8, "192.0.2.1 is not among gateway.listen; 192.0.2.9 would be right"),
        (3, '"kernl"', 3, "'kernl' is not known; did you mean 'kernel'?"),
        (6, '"ikev2"', 6, "'ikev2' is not supported by this release; 'ikev1' would be right"),
        (6, '"ikev3"', 6, "'ikev3' is not known; did you mean 'ikev"),
        (8, '"gw1.example.org"', 8, "'gw1.example.org' is no address"),
        (9, '"192.0.2.256"', 9, "'192.0.2.256' is no address"),
        (9, '"192.0.2.2/24"', 9, "\"192.0.2.0/24\" would be right"),
        (9, '"no where"', 9, "'no where' is no address"),
        (9, '"gw_2 "', 9, "'gw_2 ' is no address"),
        (9, '"2001:db8::2"', 9, "2001:db8::2 is IPv6 but local is 192.0.2.1; one IP version would be right"),
        (9, '"192.0.2.1"', 9, "192.0.2.1 is our own address; the peer's would be right"),
        (9, '"any"', 23, 'start = "up" needs one remote address; start = "wait" would be right'),
        (9, '"198.51.100.0/24"', 23, 'start = "up" needs one remote address; start = "wait" would be right'),
        (10, '"gw 1"', 10, "'gw 1' is no address, name, e-mail address or distinguished name"),
        (11, '"@gw2"', 11, "\"fqdn:gw2\" would be right"),
        (12, '"signature"', 12, "'signature' is not supported by this release; 'psk' would be right"),
        (12, '"rsa-encryption"', 12, "'rsa-encryption' is not supported by this release; 'psk' would be"),
        (12, '"revised-rsa-encryption"', 12, "'revised-rsa-encryption' is not supported by this release"),
        (12, '"pks"', 12, "'pks' is not known; did you mean 'psk'?"),
        (13, '["aes256-sha256"]', 13, "is not cipher-hash-group, as in aes256-sha256-modp2048"),
        (13, '["aes512-sha256-modp2048"]', 13, "'aes512' is no IKE cipher we know; one of aes128"),
        (13, '["aes256-md5-modp2048"]', 13, "'md5' is no hash we know; one of sha1"),
        (13, '["aes256-sha256-modp768"]', 13, "'modp768' is no group we know; one of modp1024"),
        (13, '"aes256-sha256-modp2048"', 13, 'is text; a list, as in ["..."] would be right'),
        (13, "[]", 13, "has 0 elements; 1 to 32 would be right"),
        (15, '"auot"', 15, "did you mean 'auto'?"),
        (18, '["10.1.0.0/8"]', 18, '"10.0.0.0/8" would be right'),
        (18, '["2001:db8::/32"]', 19, "selectors of IPv4 and of IPv6; one child for each would be right"),
        (19, '["10.1.0.0/16"]', 19, "10.1.0.0/16 is also in local_ts; the peer's network would be right"),
        (21, '["null"]', 21, "'null' lacks integrity; null-sha256 would be right"),
        (21, '["aes128ctr"]', 21, "'aes128ctr' lacks integrity; aes128ctr-sha256 would be right"),
        (21, '["sha256"]', 21, "'sha256' is no ESP cipher we know; one of aes128"),
        (21, '["aes128gmac-sha1"]', 21, "aes128gmac brings its own integrity; leave sha1 away"),
        (21, '["esn"]', 21, "'esn' is no ESP cipher we know"),
        (21, '["aes128-esn-sha1"]', 21, "'esn' is no integrity algorithm or group we know"),
        (21, '["aes128-sha1-modp2048-esn-noesn"]', 21, "surplus part 'esn'; an ESP proposal is cipher[-integ"),
        (21, '["chacha20poly1305"]', 21, "chacha20poly1305 cannot be negotiated in IKEv1"),
        (21, '["aes256-aescmac"]', 21, "aescmac cannot be negotiated in IKEv1"),
        (21, '["aes128"]', 21, "aes128-sha256 would be right"),
        (21, '["aes128gcm16-sha256"]', 21, "leave sha256 away"),
        (23, '"trapp"', 23, "did you mean 'trap'?"),
        (23, "true", 23, "is true or false; text in quotes"),
    ],
)  # fmt: skip
def test_each_mistake_is_told_with_its_line_and_what_would_be_right(problems, number, value, line, problem):
    found = problems(changed(number, value))
    assert [at for at, _ in found] == [line]
    assert problem in found[0][1]


def test_all_problems_are_told_at_once(problems):
    text = CONTRACT.replace('"auto"', '"atuo"').replace("10.2.0.0/16", "10.2.0.0/8").replace("aes256", "aes255")
    assert [line for line, _ in problems(text)] == [3, 13, 15, 19, 21]


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("[gatway]\n", 1, "unknown key 'gatway'; did you mean 'gateway'?"),
        ("\n[conection.a]\n", 2, "unknown key 'conection'; did you mean 'connection'?"),
        ("[gateway]\nlistn = []\n", 2, "unknown key 'listn'; did you mean 'listen'?"),
        ("gateway = 1", 1, "'gateway' is a whole number; a table would be right"),
        ("[[connection]]", 1, "'connection' is a list; a table would be right"),
        ('[connection."a b"]', 1, "'a b' is no name; 1 to 64 letters"),
        ('[connection."a/b"]', 1, "'a/b' is no name"),
        (f"[connection.{'a' * 65}]", 1, "is no name"),
        ("[gateway]\nabsent = ['seccomp']", 2, "'seccomp' is not known; one of landlock, mlock, netns would be right"),
        ("[gateway]\nabsent = ['mlock', 'mlock']", 2, "element 2 of 'absent' repeats; drop it"),
        ("[gateway.users]\nworker = 0", 2, "worker would be root or in its group"),
        ("[gateway.users]\nworker = 'root'", 2, "worker would be root or in its group"),
        ("[gateway.users]\nworker = 'wheel'", 2, "worker would be root or in its group"),
        (
            "[gateway.users]\nkeyd = 'alice'\nworker = 1000",
            2,
            "keyd and worker are the same user; one for each would be right",
        ),
        ("[gateway.users]\nkeyd = 'bob'", 2, "user 'bob' does not exist; create it, or name a number"),
        ("[gateway.users]\nkeyd = ''", 2, "user '' does not exist"),
        ("[gateway.users]\nkeyd = '99999999999'", 2, "user '99999999999' does not exist"),
        ("[gateway.users]\nkeyd = -1", 2, "'keyd' is out of range; 0 to 4294967294 would be right"),
        ("[gateway.users]\nkeyd = 4294967295", 2, "'keyd' is out of range"),
        ("[gateway.users]\nkeyd = true", 2, "'keyd' is true or false; a whole number would be right"),
        ("[gateway.users]\nkyed = 7", 2, "unknown key 'kyed'; did you mean 'keyd'?"),
    ],
)
def test_mistakes_outside_connections_have_their_line(problems, text, line, problem):
    ((at, told),) = problems(text)
    assert at == line
    assert problem in told


# each line is put after line 3 of SMALL (the connection) or at its end (the child)
@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("mode = 'aggressive'", "'aggressive' is not supported by this release; 'main' would be right"),
        ("mode = 'base'", "'base' is not supported by this release; 'main' would be right"),
        ("mode = 'quick'", "'quick' is not known; one of aggressive, base, main would be right"),
        ("dpd = { delay = '30s' }", "'dpd' is not supported by this release; leave it away"),
        ("certificate = 'gw1.pem'", "'certificate' is not supported by this release; leave it away"),
        ("remote_certificate = 'gw2.pem'", "'remote_certificate' is not supported by this release; leave it away"),
        ("ca = ['ca.pem']", "'ca' is not supported by this release; leave it away"),
        ("lifetime = '9s'", "'9s' is out of range; 10s to 30d would be right"),
        ("lifetime = '31d'", "'31d' is out of range; 10s to 30d would be right"),
        ("lifetime = 3600", 'is a whole number; text in quotes, as in "..." would be right'),
        ("livetime = '1h'", "unknown key 'livetime'; did you mean 'lifetime'?"),
        ("secret = 'x'", "unknown key 'secret'; one of auth, ca,"),
    ],
)
def test_mistakes_of_a_connection_have_their_line(problems, line, problem):
    lines = SMALL.splitlines()
    ((at, told),) = problems("\n".join([*lines[:3], line, *lines[3:]]))
    assert at == 4
    assert problem in told


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("ah = ['aes256gcm16']", "'aes256gcm16' is no AH integrity algorithm we know; one of md5, sha1, sha256"),
        ("ah = ['sha256-sha1']", "'sha1' is no group we know"),
        ("ah = ['sha256-modp2048-x']", "surplus part 'x'; an AH proposal is integrity[-group][-esn]"),
        ("ah = ['aescmac']", "aescmac cannot be negotiated in IKEv1"),
        ("replay_window = 31", "'replay_window' is out of range; 32 to 4096 would be right"),
        ("replay_window = 4097", "'replay_window' is out of range; 32 to 4096 would be right"),
        ("replay_window = '64'", "'replay_window' is text; a whole number would be right"),
        ("ipcomp = 'yes'", "'ipcomp' is text; true or false would be right"),
        ("lifetime = '0s'", "'0s' is out of range; 10s to 30d would be right"),
        ("mode = 'beet'", "'beet' is not known; one of transport, tunnel would be right"),
        ("mode = 'tunel'", "did you mean 'tunnel'?"),
        ("ike = ['aes256-sha256-modp2048']", "unknown key 'ike'; one of ah, esp,"),
    ],
)
def test_mistakes_of_a_child_have_their_line(problems, line, problem):
    ((at, told),) = problems(SMALL + line)
    assert at == 7
    assert problem in told


def test_a_child_has_esp_or_ah(problems):
    found = problems(SMALL + "esp = ['aes256gcm16']\nah = ['sha256']")
    assert found == [(8, "a child has esp or ah, not both; esp alone protects and encrypts")]


def test_ah_is_not_encapsulated_rfc3715_2_1(problems, gateway):
    text = SMALL.replace("[connection.a.child", "encap = '{}'\n[connection.a.child") + "ah = ['sha256']"
    assert gateway(text.format("auto")).connections[0].children[0].protocol is ProtocolId.AH
    assert problems(text.format("force")) == [
        (8, 'AH is not encapsulated in UDP; esp, or encap = "off", would be right')
    ]


def test_a_child_compresses_if_it_is_told_to(gateway):
    told = [gateway(SMALL + line).connections[0].children[0].ipcomp for line in ("", "ipcomp = true", "ipcomp = false")]
    assert told == [False, True, False]


def test_the_userspace_data_plane_does_not_compress(problems, gateway):
    text = "[gateway]\ndataplane = '{}'\n" + SMALL + "ipcomp = true"
    right = 'dataplane = "kernel" or ipcomp = false would be right'
    assert problems(text.format("userspace")) == [(9, f"the userspace data plane cannot carry IPComp; {right}")]
    assert gateway(text.format("auto")).connections[0].children[0].ipcomp


def test_replay_window_is_the_childs(gateway):
    windows = [gateway(SMALL + line).connections[0].children[0].replay_window for line in ("", "replay_window = 4096")]
    assert windows == [64, 4096]


BEYOND = "[gateway]\ndataplane = '{}'\n" + SMALL + "{} = ['{}']"


@pytest.mark.parametrize(
    ("key", "suite", "told"),
    [
        ("esp", "aes256gcm16-esn", "aes256gcm16-esn"),
        ("esp", "aes128-aesxcbc", "aes128-aesxcbc"),
        ("ah", "sha256", "AH sha256"),
    ],
)
def test_suites_that_the_userspace_data_plane_cannot_carry_are_named(problems, gateway, key, suite, told):
    right = 'dataplane = "kernel" or esp = ["aes256gcm16"] would be right'
    assert problems(BEYOND.format("userspace", key, suite)) == [
        (9, f"the userspace data plane cannot carry {told}; {right}")
    ]
    for choice in ("kernel", "auto"):
        assert [str(each) for each in gateway(BEYOND.format(choice, key, suite)).connections[0].children[0].suites] == [
            suite
        ]


@pytest.mark.parametrize(
    ("missing", "line", "problem"),
    [
        ("remote", 1, "'remote' is missing; add remote = \"192.0.2.2\""),
        ("local", 1, 'without "local", "local_id" must say who we are; add local_id'),
        ("local_ts", 4, "'local_ts' is missing; add local_ts = [\"10.1.0.0/16\"]"),
        ("remote_ts", 4, "'remote_ts' is missing; add remote_ts = [\"10.2.0.0/16\"]"),
        ("[connection.a.child.c]", 1, "the connection has no child; add a table [connection.a.child.lan]"),
    ],
)
def test_what_must_be_there_is_asked_for_at_its_table(problems, missing, line, problem):
    lines = SMALL.splitlines()
    if missing.startswith("["):
        lines = lines[:3]
    text = "\n".join(each for each in lines if each.split(" =")[0] != missing)
    assert (line, problem) in [(at, told[: len(problem)]) for at, told in problems(text)]


def test_who_the_peer_is_must_be_said_where_its_address_does_not(problems, gateway):
    for remote in ("any", "198.51.100.0/24"):
        text = SMALL.replace("192.0.2.2", remote)
        ((line, told),) = problems(text)
        assert (line, told) == (1, '"remote_id" must say who the peer is; add remote_id = "..." or "any"')
        assert gateway(text.replace("remote =", "remote_id = 'any'\nremote =")).connections[0].remote_id is None


def test_transport_mode_selects_nothing_but_the_outer_addresses_rfc4301_4_1(problems):
    found = problems(SMALL + 'mode = "transport"\n')
    assert found == [
        (5, "10.1.0.0/16 in transport mode; the outer address 192.0.2.1 would be right"),
        (6, "10.2.0.0/16 in transport mode; the outer address 192.0.2.2 would be right"),
    ]


def test_transport_mode_without_addresses_needs_selectors(problems):
    connection_ = '[connection.a]\nlocal = "192.0.2.1"\nremote = "any"\nremote_id = "any"\n'
    ((line, told),) = problems(connection_ + '[connection.a.child.c]\nmode = "transport"')
    assert line == 5
    assert told.startswith("'remote_ts' is missing; add remote_ts")


def test_selectors_of_different_protocols_never_meet(problems):
    text = SMALL.replace("10.1.0.0/16", "10.1.0.0/16[tcp/443]").replace("10.2.0.0/16", "10.2.0.0/16[udp]")
    assert problems(text) == [(6, "selectors of different protocols; one child for each would be right")]


def test_two_children_of_a_connection_do_not_have_the_same_selectors(problems, gateway):
    second = SMALL[SMALL.index("[connection.a.child.c]") :].replace("child.c", "child.d")
    assert problems(SMALL + second) == [
        (9, "10.1.0.0/16 to 10.2.0.0/16 is also child c's; one child for it would be right")
    ]
    assert len(gateway(SMALL + second.replace("10.2.0.0/16", "10.2.0.0/24")).connections[0].children) == 2


def test_a_connection_has_a_child(problems):
    assert problems(SMALL[: SMALL.index("[connection.a.child.c]")] + "[connection.a.child]") == [
        (4, "the connection has no child; add a table [connection.a.child.lan]")
    ]


def connection(name: str, remote: str, local_ts: str, remote_ts: str, remote_id: str = "") -> str:
    """Six lines."""
    return textwrap.dedent(f"""\
        [connection.{name}]
        local_id = "gw1"
        remote = "{remote}"
        remote_id = "{remote_id or name}"
        [connection.{name}.child.lan]
        local_ts = ["{local_ts}"]
        remote_ts = ["{remote_ts}"]
    """)


def test_connections_that_no_responder_could_tell_apart_are_refused(problems, gateway):
    first = connection("a", "192.0.2.2", "10.1.0.0/16", "10.2.0.0/16", "gw2")
    second = connection("b", "192.0.2.2", "10.1.0.0/16", "10.3.0.0/16", "gw2")
    ((line, told),) = problems(first + second)
    assert line == 10
    assert told.startswith("same addresses and remote_id as [connection.a]; one connection with a child for each")
    assert len(gateway(first + second.replace('"gw2"', '"gw3"')).connections) == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("10.1.0.0/16", "10.2.0.0/16"), ("10.1.0.0/16", "10.2.0.0/16")),
        (("10.1.0.0/16", "10.2.3.0/24"), ("10.1.0.0/16", "10.2.0.0/16")),
        (("10.1.0.0/16", "0.0.0.0/0"), ("10.1.7.0/24", "10.2.0.0/16")),
        (("10.1.0.0/16", "10.2.0.0/16[tcp]"), ("10.1.0.0/16", "10.2.0.1[tcp/443]")),
        (("10.1.0.0/16", "10.2.0.0/16[udp/500]"), ("10.1.0.0/16", "10.2.0.1")),
        (("2001:db8::/32", "2001:db9::/32"), ("::/0", "2001:db9:1::/48")),
    ],
)
def test_a_packet_belongs_to_one_connection(problems, one, other):
    ((line, told),) = problems(connection("a", "192.0.2.2", *one) + connection("b", "192.0.2.3", *other))
    assert line in (7, 14)
    assert " overlaps " in told
    assert told.endswith("selectors of one connection only, or an if_id for each, would be right")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("10.1.0.0/16", "10.2.0.0/16"), ("10.1.0.0/16", "10.3.0.0/16")),
        (("10.1.0.0/16", "10.2.0.0/16"), ("10.4.0.0/16", "10.2.0.0/16")),
        (("10.1.0.0/16", "10.2.0.0/16[tcp]"), ("10.1.0.0/16", "10.2.0.0/16[udp]")),
        (("10.1.0.0/16", "10.2.0.0/16[tcp/80]"), ("10.1.0.0/16", "10.2.0.0/16[tcp/443]")),
        (("0.0.0.0/0", "0.0.0.0/0"), ("2001:db8::/32", "::/0")),
    ],
)
def test_connections_whose_packets_differ_stand_side_by_side(gateway, one, other):
    text = connection("a", "192.0.2.2", *one) + connection("b", "192.0.2.3", *other)
    assert len(gateway(text).connections) == 2


_networks = st.builds(
    lambda address, prefix: str(ipaddress.ip_network((address & (0xFFFFFFFF << (32 - prefix)), prefix))),
    st.sampled_from([0x0A000000, 0x0A010000, 0x0A010100, 0x0A010200, 0x0A020000]),
    st.sampled_from([0, 8, 15, 16, 23, 24, 32]),
)


@given(st.lists(_networks, min_size=2, max_size=8))
def test_overlaps_are_found_exactly_where_two_networks_share_an_address(networks):
    text = "".join(
        connection(f"c{number}", f"192.0.2.{number + 2}", "172.16.0.0/12", network)
        for number, network in enumerate(networks)
    )
    parsed = [ipaddress.ip_network(network) for network in networks]
    overlapping = any(a.overlaps(b) for index, a in enumerate(parsed) for b in parsed[:index])
    try:
        loader.load(text, "f", Names({}))
    except ConfigError:
        assert overlapping
    else:
        assert not overlapping


def told_lines(text: str) -> set[int]:
    """The lines of the problems of a text; whatever else is raised fails the test."""
    try:
        loader.load(text, "f", Names({}))
    except ConfigError as error:
        return {problem.line for problem in error.problems}
    return set()


_words = st.sampled_from(
    ["[gateway]", "[connection.a]", "[connection.a.child.b]", "listen", "remote", "local", "local_id", "ike", "esp"]
    + ["mode", "users", "absent", "local_ts", "remote_ts", "start", "lifetime", "=", "\n", "[", "]", "{", "}", ",", "."]
    + ['"any"', '"192.0.2.1"', '"10.0.0.0/8"', '"8h"', '"up"', '"transport"', '"netns"', "1", "true", '"x"']
)


@given(st.lists(_words, max_size=40).map(" ".join) | st.text(max_size=60))
def test_no_text_raises_anything_but_a_config_error(text):
    assert told_lines(text) <= set(range(1, text.count("\n") + 2))


_mutations = st.tuples(st.integers(0, len(CONTRACT) - 1), st.integers(0, 8), st.text(max_size=6))


@given(st.lists(_mutations, min_size=1, max_size=3))
def test_no_damage_to_a_good_text_raises_anything_but_a_config_error(mutations):
    text = CONTRACT
    for at, drop, insert in mutations:
        text = text[:at] + insert + text[at + drop :]
    assert told_lines(text) <= set(range(1, text.count("\n") + 2))


@pytest.mark.parametrize("remote", ["198.18.{0}.{1}", "any"])
def test_loading_four_times_as_many_connections_costs_about_four_times_as_much(remote):
    def cost(size):
        text = "".join(
            connection(
                f"c{number}", remote.format(number // 250, number % 250 + 1), "10.255.0.0/16", f"10.0.{number}.0/24"
            )
            + f'[connection.c{number}.child.more]\nlocal_ts = ["10.254.0.0/16"]\nremote_ts = ["10.1.{number}.0/24"]\n'
            for number in range(size)
        )
        return instructions(lambda: loader.load(text, "f", Names({})))

    assert cost(160) < 5 * cost(40)


def test_one_mistake_in_every_connection_costs_no_look_at_every_pair(problems):
    """All have the same networks: each pair of them is a problem, and a hundred are told."""

    def cost(size):
        text = "".join(connection(f"c{n}", "any", "10.1.0.0/16", "10.2.0.0/16") for n in range(size))
        assert "overlaps 10.2.0.0/16" in problems(text)[0][1]
        return instructions(lambda: problems(text))

    assert cost(160) < 5 * cost(40)


def test_the_policy_numbers_bound_the_children_of_all_connections(problems, monkeypatch):
    monkeypatch.setattr("privsep.config.checks.MAX_POLICIES", 1)
    text = connection("a", "192.0.2.2", "10.1.0.0/16", "10.2.0.0/16") + connection(
        "b", "192.0.2.3", "10.1.0.0/16", "10.3.0.0/16"
    )
    assert problems(text) == [(1, "2 children; 1 are possible")]
