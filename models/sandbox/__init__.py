"""Files that nobody vouches for, opened in a child process."""
