"""Fuzzing of admission: what is made up, what has to hold, and how long it goes on."""
