"""What tells a folder of simulated traffic from one of real people's."""

# Written by the simulation into every folder that it writes logs to, with the runs that wrote there. Real conversations
# never go into such a folder, and simulated traffic into no other.
MARKER = "simulated.json"
