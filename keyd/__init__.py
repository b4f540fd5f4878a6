"""The key process: PSKs, Diffie-Hellman, SKEYID, KEYMAT, and the rules for their use."""
