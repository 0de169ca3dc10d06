"""Questions whose answers are of different kinds, for measuring drafts where no text is given."""

from typing import Final

_PROGRAM = """\
class Account:
    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance

    def deposit(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        self.balance += amount
        return self.balance

    def withdraw(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        if amount > self.balance:
            raise ValueError("not enough money")
        self.balance -= amount
        return self.balance
"""

TEXTS: Final = {
    "rewrite": f"Rename the class Account to Purse and balance to coins. Answer with the whole program.\n\n{_PROGRAM}",
    "code": "Write a Python class for a queue with push, pop, peek and length, with doctests for each method.",
    "calculation": "What is 37 + 58? What is 12 * 11? What is 640 - 255?",
    "story": "Tell a short story about a lighthouse keeper who finds a letter in a bottle.",
}
