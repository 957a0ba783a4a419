"""The suites that come with kdbench."""
