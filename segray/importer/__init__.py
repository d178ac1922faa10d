"""Labels that other programs corrected, back into the tables of `annotate`."""
