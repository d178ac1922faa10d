"""Generate the files with which a scheduler runs another verb regularly; segray itself does not schedule."""
