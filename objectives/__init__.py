"""The objectives that come with kdbench, one published method a file."""
