"""The privsep-ike command (CONTRACT: command line)."""
