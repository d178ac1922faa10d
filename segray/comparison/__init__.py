"""Several models over the same labelled images: scores, differences, cost, panels."""
