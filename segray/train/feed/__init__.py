"""From the data to batches: pairs, surveyed, dealt to splits, read in order."""
