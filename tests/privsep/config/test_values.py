"""Durations, selectors, identities, distinguished names, host and user names."""

import ipaddress
import os

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from privsep.config import durations, names
from privsep.config.distinguished_names import MAX_RDNS, encode
from privsep.config.identities import parse_identity
from privsep.config.selectors import parse_selector
from privsep.iana import IdType
from privsep.types import Identity, TrafficSelector


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("8h", 28800), ("1d", 86400)])
def test_durations_have_a_unit(text, seconds):
    assert durations.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "s", "1.5h", "-1s", "1 h", "1H", "8hours", "1h30m", "٣s", "9" * 10 + "s"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match='"90s", would be right'):
        durations.seconds(text)


def test_durations_are_bounded():
    parse = durations.between("1m", "1h")
    assert (parse("60s"), parse("60m")) == (60, 3600)
    for text in ("59s", "3601s"):
        with pytest.raises(ValueError, match="1m to 1h would be right"):
            parse(text)


@pytest.mark.parametrize(
    ("text", "network", "protocol", "port"),
    [
        ("10.1.0.0/16", "10.1.0.0/16", 0, 0),
        ("10.1.0.7", "10.1.0.7/32", 0, 0),
        ("10.1.0.0/16[tcp/443]", "10.1.0.0/16", 6, 443),
        ("10.1.0.0/16[tcp]", "10.1.0.0/16", 6, 0),
        ("10.1.0.0/16[udp/any]", "10.1.0.0/16", 17, 0),
        ("0.0.0.0/0[any]", "0.0.0.0/0", 0, 0),
        ("10.1.0.0/16[47]", "10.1.0.0/16", 47, 0),
        ("2001:db8::/32[ICMPv6]", "2001:db8::/32", 58, 0),
        ("2001:db8::1[17/1701]", "2001:db8::1/128", 17, 1701),
    ],
)
def test_selectors_are_a_network_with_protocol_and_port(text, network, protocol, port):
    selector = parse_selector(text)
    assert selector == TrafficSelector(ipaddress.ip_network(network), protocol, port)
    assert parse_selector(str(selector)) == selector


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("10.1.0.0/8", '"10.0.0.0/8" would be right'),
        ("10.1.0.0/33", "is no network"),
        ("10.1.0.0/255.255.0.0", "is no network"),
        ("10.1.0.0/", "is no network"),
        ("10.1.0.0/16/16", "is no network"),
        ("10.1/16", "is no network"),
        ("gw.example.org", "is no network"),
        ("fe80::1%eth0", "has a zone"),
        ("10.1.0.0/16[tcp/443", "is no selector"),
        ("10.1.0.0/16[]", "is no selector"),
        ("10.1.0.0/16[tcp/443]x", "is no selector"),
        ("", "is no selector"),
        ("10.1.0.0/16[tpc/443]", "is no protocol"),
        ("10.1.0.0/16[256]", "is no protocol"),
        ("10.1.0.0/16[0]", "is no protocol"),
        ("10.1.0.0/16[tcp/https]", "is no port"),
        ("10.1.0.0/16[tcp/65536]", "is no port"),
        ("10.1.0.0/16[icmp/8]", "without ports"),
        ("10.1.0.0/16[any/8]", "without ports"),
    ],
)
def test_what_is_no_selector_is_refused(text, right):
    with pytest.raises(ValueError, match=r".") as caught:
        parse_selector(text)
    assert right in str(caught.value)


@pytest.mark.parametrize(
    ("text", "kind", "data"),
    [
        ("192.0.2.1", IdType.IPV4_ADDR, bytes([192, 0, 2, 1])),
        ("2001:db8::1", IdType.IPV6_ADDR, ipaddress.ip_address("2001:db8::1").packed),
        ("gw1.example.org", IdType.FQDN, b"gw1.example.org"),
        ("gateway", IdType.FQDN, b"gateway"),
        ("admin@example.org", IdType.USER_FQDN, b"admin@example.org"),
        ("CN=gw1", IdType.DER_ASN1_DN, encode("CN=gw1")),
        ("fqdn:192.0.2.1", IdType.FQDN, b"192.0.2.1"),
        ("fqdn:any", IdType.FQDN, b"any"),
        ("email:a@b", IdType.USER_FQDN, b"a@b"),
        ("ipv4:192.0.2.1", IdType.IPV4_ADDR, bytes([192, 0, 2, 1])),
        ("ipv6:::1", IdType.IPV6_ADDR, bytes(15) + b"\x01"),
        ("dn:C=DE, CN=a@b", IdType.DER_ASN1_DN, encode("C=DE,CN=a@b")),
        ("keyid:deadBEEF", IdType.KEY_ID, b"\xde\xad\xbe\xef"),
        ("keyid:0x00ff", IdType.KEY_ID, b"\x00\xff"),
        ("keyid:router-7", IdType.KEY_ID, b"router-7"),
        ("keyid:abc", IdType.KEY_ID, b"abc"),
    ],
)
def test_identities_are_inferred_or_forced_rfc2407_4_6_2(text, kind, data):
    assert parse_identity(text) == Identity(kind, data)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("", "is no address, name"),
        ("192.0.2.300", "is no address, name"),
        ("gw 1", "is no address, name"),
        ("@gw1", '"fqdn:gw1" would be right'),
        ("a@", "is no address, name"),
        ("email:gw1", '"user@example.org" would be right'),
        ("ipv4:2001:db8::1", "ipv6: would be right"),
        ("ipv6:192.0.2.1", "ipv4: would be right"),
        ("ipv4:gw1", "is no address"),
        ("ipv6:fe80::1%eth0", "without '%eth0' would be right"),
        ("fqdn:", "is no name"),
        ("fqdn:gw ü", "is no name"),
        ("fqdn:" + "a" * 256, "is no name"),
        ("keyid:", "is no key id"),
        ("keyid:" + "zz" * 128, "is no key id"),
        ("CN=", '"C=DE, O=Example, CN=gw1" would be right'),
        ("dn:gw1", '"C=DE, O=Example, CN=gw1" would be right'),
        ("C=DE, SERIALNUMER=7", "did you mean 'SERIALNUMBER'?"),
        (",".join(["CN=a"] * (MAX_RDNS + 1)), f"{MAX_RDNS} are possible"),
    ],
)
def test_what_is_no_identity_is_refused(text, right):
    with pytest.raises(ValueError, match=r".") as caught:
        parse_identity(text)
    assert right in str(caught.value)


@given(st.text(max_size=40))
def test_no_text_makes_an_identity_raise_anything_but_value_error(text):
    for prefix in ("", "fqdn:", "email:", "ipv4:", "ipv6:", "dn:", "keyid:"):
        try:
            identity = parse_identity(prefix + text)
        except ValueError:
            continue
        assert len(identity.data) >= 1


@given(st.text(max_size=30))
def test_no_text_makes_a_selector_raise_anything_but_value_error(text):
    try:
        selector = parse_selector(text)
    except ValueError:
        return
    assert parse_selector(str(selector)) == selector


_OF_CERTIFICATES = {
    "C": (NameOID.COUNTRY_NAME, "DE"),
    "ST": (NameOID.STATE_OR_PROVINCE_NAME, "Bavaria"),
    "L": (NameOID.LOCALITY_NAME, "Munich"),
    "STREET": (NameOID.STREET_ADDRESS, "Main 1"),
    "O": (NameOID.ORGANIZATION_NAME, "Example (Ltd)"),
    "OU": (NameOID.ORGANIZATIONAL_UNIT_NAME, "R/D"),
    "T": (NameOID.TITLE, "Dr"),
    "G": (NameOID.GIVEN_NAME, "Jo"),
    "SN": (NameOID.SURNAME, "Doe"),
    "SERIALNUMBER": (NameOID.SERIAL_NUMBER, "7"),
    "UID": (NameOID.USER_ID, "jo"),
    "CN": (NameOID.COMMON_NAME, "gw1.example.org"),
}


def test_distinguished_names_are_der_as_certificates_have_them_rfc5280_4_1_2_4():
    printable, ia5, utf8 = (
        getattr(x509.name._ASN1Type, kind) for kind in ("PrintableString", "IA5String", "UTF8String")
    )
    attributes = [x509.NameAttribute(oid, value, _type=printable) for oid, value in _OF_CERTIFICATES.values()]
    attributes.append(x509.NameAttribute(NameOID.DOMAIN_COMPONENT, "org", _type=ia5))
    attributes.append(x509.NameAttribute(NameOID.EMAIL_ADDRESS, "a@example.org", _type=ia5))
    attributes.append(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "Zürich, *", _type=utf8))
    text = ", ".join(f"{kind}={value}" for kind, (_, value) in _OF_CERTIFICATES.items())
    encoded = encode(text + r",dc=org, emailAddress=a@example.org,OU=Zürich\, *")
    assert encoded == x509.Name(attributes).public_bytes()


def test_answers_handed_on_are_all_that_another_process_knows():
    first = names.Names()
    found = (first.user("root"), first.user(61001), first.user("nobody-has-this-name"))
    second = names.Names(first.answers)
    assert (second.user("root"), second.user(61001)) == found[:2]
    assert second.user("nobody-has-this-name") is None
    assert second.user(os.getuid() + 7) is None


def test_a_number_that_names_no_user_is_its_own_group():
    assert names.Names().user(1_900_000_077) == (1_900_000_077, 1_900_000_077)
    assert names.Names().user("root") == (0, 0)
    assert names.Names().user("nobody-has-this-name") is None
