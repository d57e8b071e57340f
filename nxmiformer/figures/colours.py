"""A restrained palette that colour-blind readers can tell apart."""

PAPER, INK, MUTED, RULE, BAND = "#ffffff", "#1d2733", "#667380", "#d5dbe1", "#f2f4f7"
BLUE, SKY, ORANGE, SLATE, GREY = "#0f6cab", "#86b8dc", "#d2691e", "#4d5a67", "#b9c2cb"
# What the colours become where the reader's screen is dark; all others stay.
DARK = {
    PAPER: "#161b21",
    INK: "#e6eaee",
    MUTED: "#9aa6b2",
    RULE: "#38424c",
    BAND: "#1e252d",
    BLUE: "#4aa0df",
    SLATE: "#8593a1",
}
