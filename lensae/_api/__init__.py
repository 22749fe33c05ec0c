"""What `import lensae` gives: thin wrappers around the stages, for a process that is somebody else's."""
