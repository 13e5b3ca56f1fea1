"""What a person can mend."""


class Problem(Exception):
    """Cannot go on; the text says what is wrong and what to do, and is all that the person sees."""
