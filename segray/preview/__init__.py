"""A run -> a folder of static pages, which open in a browser without a server or the internet."""
