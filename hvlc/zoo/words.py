"""The words that the documents use: few, so that a small model can learn to ask for them."""

from __future__ import annotations

#: Letters and digits of codes; those that a small font draws alike are left out.
CODE_LETTERS = "ACEFHKLMNPRTUXY"
CODE_DIGITS = "23456789"

NAMES = (
    "Ada Adam Alex Alma Anna Arne Bela Ben Carl Clara Dana Dora Emil Emma Erik Eva Fay Finn Fred "
    "Gina Greta Hans Heidi Hugo Ida Ines Ivan Jana Jim Jon Julia Karl Kate Kim Lara Lea Leo Lisa "
    "Lou Luca Maja Marc Mia Milo Nina Noah Nora Olga Omar Otto Paul Petra Rita Rosa Sam Sara Sven "
    "Tara Theo Tom Vera"
).split()

ITEMS = "Apple Bread Cake Coffee Egg Fish Honey Juice Milk Pasta Rice Salt Soup Sugar Tea Water".split()
STORES = "Aldo Bistro Cafe Corner Depot Fresh Kiosk Market Metro Plaza".split()
SCREENS = "Alarm Bank Camera Health Home Mail Maps Music Profile Settings".split()
BUTTONS = "Back Cancel Edit Next Open Save Send Stop".split()
CITIES = "Berlin Bonn Cairo Dublin Geneva Lima London Madrid Milan Oslo Paris Prague Rome Vienna".split()
STATES = "Auto High Low Off On".split()

#: The lists that values are taken from, by sort of value.
LISTS: dict[str, list[str]] = {"name": NAMES, "item": ITEMS, "city": CITIES, "state": STATES}

#: Field labels of each kind of document, with the sort of value each takes.
LABELS: dict[str, dict[str, str]] = {
    "receipt": {
        "Total": "amount",
        "Tax": "amount",
        "Tip": "amount",
        "Cash": "amount",
        "Change": "amount",
        "Date": "date",
        "Time": "time",
        "Clerk": "name",
        "Table": "count",
        "Code": "code",
    },
    "form": {
        "Name": "name",
        "Guest": "name",
        "Doctor": "name",
        "Date": "date",
        "Birth": "date",
        "Time": "time",
        "City": "city",
        "From": "city",
        "Room": "count",
        "Seat": "count",
        "Age": "count",
        "Code": "code",
        "Gate": "code",
        "Fee": "amount",
    },
    "screen": {
        "Wifi": "state",
        "Sound": "state",
        "Mode": "state",
        "Level": "percent",
        "Battery": "percent",
        "Volume": "percent",
        "User": "name",
        "Alarm": "time",
        "Sleep": "time",
        "Steps": "count",
        "Speed": "count",
        "Zone": "city",
        "Pin": "code",
        "Balance": "amount",
    },
}

#: Column heads, the list that names the rows, and the sorts of the other columns.
TABLES: list[tuple[tuple[str, ...], str, tuple[str, ...]]] = [
    (("Item", "Price"), "item", ("amount",)),
    (("Item", "Qty", "Price"), "item", ("count", "amount")),
    (("Name", "Score"), "name", ("count",)),
    (("Name", "Room", "Time"), "name", ("count", "time")),
    (("City", "Code"), "city", ("code",)),
]

#: The sorts of value.
SORTS = ("amount", "date", "time", "code", "count", "percent")

#: Every word that a document can show.
ALL = sorted(
    {*NAMES, *ITEMS, *STORES, *SCREENS, *BUTTONS, *CITIES, *STATES}
    | {label for labels in LABELS.values() for label in labels}
    | {head for heads, _, _ in TABLES for head in heads}
)
