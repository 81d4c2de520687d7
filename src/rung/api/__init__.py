"""The functions and classes of `import rung`: each verb of the command as one function.

They stand above the workflows and below the command, which parses, calls one of them and prints.
"""
