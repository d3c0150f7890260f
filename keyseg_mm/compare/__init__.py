"""``keyseg compare``: the methods, their configs, the steps by which each is tried, and the table and page."""
