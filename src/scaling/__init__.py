"""How a network is scaled: rules, rounding, solving to a budget, and the audit of what was really built."""
