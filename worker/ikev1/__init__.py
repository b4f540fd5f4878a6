"""One module for each exchange of RFC 2408 and RFC 2409."""
