"""The matrix is whole: whatever can be negotiated is tried on a kernel. Runs anywhere."""

from cases import SUITES, parsed

from privsep.algorithms import ChildSuite, EspCipher, Integrity
from privsep.iana import ProtocolId


def used(protocol, part):
    return {getattr(suite, part) for suite in map(parsed, SUITES) if suite.protocol is protocol}


def negotiable(algorithms):
    """IKEv1 has no number for some, and its registry is closed (RFC 9395)."""
    return {algorithm for algorithm in algorithms if algorithm.number is not None}


def is_an_ah_suite(integrity):
    try:
        ChildSuite.parse(integrity.keyword, ProtocolId.AH)
    except ValueError:
        return False
    return integrity.number is not None


def test_every_cipher_of_esp_has_a_suite_in_the_matrix():
    assert negotiable(EspCipher) - used(ProtocolId.ESP, "cipher") == set()


def test_every_integrity_algorithm_of_esp_has_a_suite_in_the_matrix():
    assert negotiable(Integrity) - used(ProtocolId.ESP, "integrity") == set()


def test_every_integrity_algorithm_of_ah_has_a_suite_in_the_matrix():
    assert set(filter(is_an_ah_suite, Integrity)) - used(ProtocolId.AH, "integrity") == set()
