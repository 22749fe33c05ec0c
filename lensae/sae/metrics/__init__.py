"""How good an SAE is: figures over rows, their intervals, and what it is compared with."""
