"""Diffie-Hellman groups behind one seam."""
