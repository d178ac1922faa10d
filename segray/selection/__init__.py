"""Which images a person should look at next: a run -> a manifest with reasons. Labels are not needed."""
