"""One command for a GPU: is it right there, how fast is it, what does it take."""
