"""Hold the words that the demo's questions are made of.

Plain constants: it reads nothing, writes nothing and draws nothing at random.
"""


def words(text: str) -> tuple[str, ...]:
    """Return the words of a text."""
    return tuple(text.split())


NAMES = words(
    "Ana Ben Cleo Dan Ema Finn Gita Hugo Iris Jon Kaja Leo Mia Nils Olga Pia Quinn Rosa Sam Tess Uma Vera Will Xena "
    "Yara Zoe Aron Bea Carl Dora Erik Fay Gus Hana Ivan Jana Karl Lena Max Nora Otto Paul Rita Sven Tina Ugo Vic Zack"
)
"""Given names, at most five letters."""

CITIES = words(
    "Oslo Bergen Paris Lyon Rome Turin Madrid Porto Lisbon Berlin Bonn Kiel Vienna Graz Prague Brno Warsaw Lodz Riga "
    "Vilnius Tallinn Helsinki Turku Malmo Lund Dublin Cork Leeds York Ghent Bruges Delft Zurich Basel Athens Sofia "
    "Zagreb Split Ankara Cairo Tunis Dakar Accra Lagos Lima Quito Bogota Havana Boston Denver Tokyo Osaka Seoul Hanoi"
)
"""City names, at most eight letters."""

WORDS = words(
    "apple bread chair delta ember flute grape honey inkpot jelly kite lemon mango night olive piano quilt river stone "
    "tiger uncle vase wheat yarn zebra atlas beach cloud daisy eagle frost glass house ivory joker knife lamp metal "
    "nest ocean pearl queen robot sugar table urban valve water yeast acorn brick candy drum earth field ghost hotel"
)
"""Short words to sort."""

ITEMS = words(
    "lamp kettle desk chair phone tablet jacket boots mixer heater radio camera printer watch bike tent mirror shelf "
    "sofa blender router monitor keyboard backpack"
)
"""Things a customer buys."""

OPENERS = (
    "",
    "Hi, ",
    "Hello, ",
    "Hey, ",
    "Please help, ",
    "Sorry, ",
    "Good morning, ",
    "To whom it may concern, ",
    "Quick question: ",
    "Dear team, ",
)
"""Ways to open a customer message."""

CLOSERS = ("", ".", " please.", ", thanks.", ", thank you!", " today.", " as soon as you can.", " - Ana", " - Ben")
"""Ways to end a customer message."""

INTENTS = {
    "refund": (
        "I want my money back for the {item}",
        "please pay back what I spent on the {item}",
        "when do I get the refund for my {item}",
        "the {item} went back, where is my money",
        "I was promised a refund on the {item}",
        "you still owe me for the {item} I returned",
    ),
    "delivery": (
        "where is my {item}",
        "the {item} has not arrived yet",
        "when will the {item} be delivered",
        "the courier never came with the {item}",
        "the parcel with my {item} is late",
        "tracking shows no news of the {item}",
    ),
    "invoice": (
        "I need a bill for the {item}",
        "send me the invoice of the {item}",
        "the receipt for the {item} is missing",
        "my invoice shows the wrong price for the {item}",
        "accounting wants a receipt for the {item}",
        "there is no tax line on the bill for my {item}",
    ),
    "login": (
        "I cannot log in to register my {item}",
        "my password fails and I must order a {item}",
        "the reset link is dead, I only want a {item}",
        "I am locked out of the account with my {item}",
        "the sign-in page rejects me since I got the {item}",
        "I forgot my password, my {item} is in the cart",
    ),
    "cancel": (
        "stop the order of the {item}",
        "I no longer want the {item}, do not ship it",
        "cancel the {item} before it ships",
        "I ordered the {item} twice, drop one",
        "I changed my mind about the {item}, call it off",
        "take the {item} off my open order",
    ),
    "address": (
        "I moved, send the {item} to my new home",
        "the street on the label of my {item} is wrong",
        "change the address for the {item}",
        "the {item} should go to my office instead",
        "update my postcode before the {item} leaves",
        "my {item} must go to another town",
    ),
    "repair": (
        "the {item} broke after a week",
        "my {item} is faulty, is it under warranty",
        "can you fix the {item}",
        "the {item} makes a strange noise and stops",
        "my {item} no longer turns on",
        "I need a spare part for the {item}",
    ),
    "human": (
        "let me talk to a person about the {item}",
        "I want to complain about the {item} to a manager",
        "can somebody call me about the {item}",
        "no more bots, give me an agent for my {item}",
        "is there anyone I can speak to about the {item}",
        "put me through to staff, it is about a {item}",
    ),
}
"""Eight labels, each with the sentences that stand for it."""
