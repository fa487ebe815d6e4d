"""What random sequences are made of: each draw is a function from an `Aim` to the operations that it adds.

A draw may find nothing to aim at and give no operation. It may give what is refused: half of the interest is in errors.
"""
