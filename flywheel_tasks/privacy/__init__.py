"""Personal identifiers: found, replaced or dropped by policy, and looked for again wherever data leaves."""
