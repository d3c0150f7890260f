"""Live models: encryptors in them, their protection, and the search for leaks."""
