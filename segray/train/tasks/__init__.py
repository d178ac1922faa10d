"""The tasks that can be trained: what each lists, reads, computes and scores."""
