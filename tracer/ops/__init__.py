"""Transfer functions: how every kind of operation carries token labels."""
