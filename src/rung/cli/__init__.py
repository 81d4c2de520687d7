"""The command `rung`: each verb parses, calls one library function, and prints."""
