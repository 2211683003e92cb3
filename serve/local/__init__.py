"""An endpoint on this machine: started, kept, and stopped."""
