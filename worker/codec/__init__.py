"""ISAKMP on the wire: header, payloads, attributes."""
