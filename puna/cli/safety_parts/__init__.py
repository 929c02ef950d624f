"""The commands of `puna safety`, one file each."""
