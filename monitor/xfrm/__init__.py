"""The kernel data plane: XFRM over netlink."""
