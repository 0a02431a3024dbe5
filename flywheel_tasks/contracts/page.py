"""placeholder"""
def render_page(*a, **k): return "<html>"
