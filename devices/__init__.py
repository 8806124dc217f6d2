"""What both ends of Forebay know: vocabulary and bytes. No process, no policy."""
