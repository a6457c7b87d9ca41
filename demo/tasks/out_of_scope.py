"""Questions that belong to no expert: small talk, knowledge, advice, and near misses that borrow an expert's words.

Knows nothing about the skills. Training and test use different topics and different wordings.
"""

from __future__ import annotations

from itertools import product
from random import Random

_TRAIN_ASKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "cooking": (
        (
            "how do I cook {}",
            "what goes well with {}",
            "give me a recipe for {}",
            "how long should I bake {}",
            "can I freeze {}",
            "which spices fit {}",
        ),
        (
            "lasagna",
            "roast chicken",
            "mushroom soup",
            "pancakes",
            "sourdough bread",
            "fried rice",
            "apple pie",
            "lentil stew",
        ),
    ),
    "travel": (
        (
            "what should I see in {}",
            "how do I get to {} by train",
            "when is the best season to visit {}",
            "is {} expensive for tourists",
            "recommend a hotel in {}",
        ),
        ("Lisbon", "Kyoto", "Morocco", "Scotland", "Vienna", "Peru", "the Alps", "New York"),
    ),
    "health": (
        ("how can I treat {}", "what causes {}", "should I see a doctor about {}", "which exercises help against {}"),
        ("a headache", "back pain", "a sore throat", "insomnia", "hay fever", "a sprained ankle"),
    ),
    "programming": (
        (
            "how do I {} in Python",
            "what is the best way to {}",
            "why does my code fail when I {}",
            "show me an example of how to {} in Rust",
        ),
        (
            "open a file",
            "parse JSON",
            "start a thread",
            "write a unit test",
            "catch an exception",
            "call a web service",
            "use a dictionary",
        ),
    ),
    "people": (
        ("who was {}", "tell me about the life of {}", "what is {} famous for", "where was {} born"),
        (
            "Marie Curie",
            "Leonardo da Vinci",
            "Nelson Mandela",
            "Cleopatra",
            "Isaac Newton",
            "Frida Kahlo",
            "Julius Caesar",
            "Samuel Morse",
            "George Boole",
        ),
    ),
    "science": (
        ("why is {}", "explain to a child why {}", "is it true that {}", "what would happen if {}"),
        (
            "the sky blue",
            "the sea salty",
            "ice slippery",
            "the moon getting farther away",
            "grass green",
            "the sun so hot",
        ),
    ),
    "feelings": (
        ("I feel {} today", "what can I do when I am {}", "my friend is {}, how can I help", "why am I so {}"),
        ("sad", "lonely", "nervous", "tired", "angry", "bored", "excited"),
    ),
    "writing": (
        (
            "write a poem about {}",
            "write a short story about {}",
            "give me three ideas for an essay on {}",
            "write a friendly email about {}",
            "help me write a speech about {}",
        ),
        ("the sea", "my grandmother", "a lost dog", "summer holidays", "friendship", "a delayed delivery"),
    ),
    "money": (
        ("how do I save for {}", "is it wise to borrow money for {}", "what does {} cost on average"),
        ("a house", "a used car", "retirement", "a wedding", "a new laptop"),
    ),
    "nature": (
        ("what do {} eat", "where do {} live", "how long do {} live", "are {} dangerous", "how do {} sleep"),
        ("hedgehogs", "penguins", "octopuses", "wolves", "owls", "bats", "koalas"),
    ),
    "films": (
        ("who directed {}", "what is {} about", "is {} worth watching", "recommend something like {}"),
        ("Casablanca", "The Godfather", "Star Wars", "Spirited Away", "Jaws", "Amelie"),
    ),
    "household": (
        ("how do I clean {}", "how do I repair {}", "how often should I replace {}", "where can I buy {}"),
        ("a carpet", "the oven", "a leaking tap", "a bicycle chain", "wool curtains"),
    ),
}
_TRAIN_LINES = """
who invented Roman numerals|why did the Romans not have a zero|which emperor ruled Rome the longest
what day do shops close|which day is best for washing|when is the weekend|what do you do on a Monday
who invented Morse code|is Morse code still taught in schools|when was the telegraph built|what is a Caesar salad
did Caesar really use secret codes|is the Caesar cipher safe|what is a database|who made the first database
should I learn SQL or Python first|what is the best database for a small shop|is SQL hard to learn
why do computers use binary|who discovered binary numbers|what does hexadecimal mean|is hex a kind of magic
why do we have leap years|who introduced the leap year|why is February so short|what happens on a leap day birthday
what is the origin of the word kilometer|why does America not use the metric system|who invented the meter
how heavy is an elephant|how tall is Mount Everest|how far away is the moon|how fast is a cheetah
what is the plural of mouse|what does the word serendipity mean|which word rhymes with orange
how many letters did Vincent van Gogh write|who wrote letters from prison|how do I write a letter to my landlord
which brackets do I need for a shelf|what is a tax bracket|are bracket fungi edible
is true love real|is it true or false that cats are clever|was he true to his word|why do people spread false news
what is boolean logic good for|who was the founder of logic|is logic part of philosophy
why is multiplication harder than addition|who invented multiplication tables|how can I teach my son to multiply
why is maths important|how do I get better at arithmetic|what is the history of numbers
what is the largest number with a name|is zero a number|what are prime numbers good for
how does a sorting office work|what sort of dog should I get|sort out my life|how do I sort my laundry
how do I reverse a car into a garage|what is reverse psychology|how do I reverse a decision
what is the word for fear of spiders|which words are hard to pronounce|how many words does a novel have
how do I count calories|who was the Count of Monte Cristo|how do I count sheep
does it add up that he was there|what adds value to a house|who added salt to the soup
how do I convert a loft|how do I convert to another religion|can I convert my car to electric
how many days should I stay in Rome|how many days of holiday do people have in France|how many hours should I sleep
how many people live in China|how many strings does a violin have|how many legs does a spider have
how much water should I drink|how much does a good bicycle cost|how much sugar is too much
what is the difference between a frog and a toad|what is the difference between jam and jelly
what is the sum of human knowledge|what is the meaning of life|what is the time in Tokyo
what is the capital of Australia|what is your name|who are you|how are you|thank you|good morning|hello|goodbye
tell me a joke|sing a song|what can you do|are you a robot|do you dream|how old are you|where do you live
I like you|you are wrong|that was not helpful|please stop|never mind|what did I just say|say that again
what is the weather like today|will it rain on Sunday|is it going to snow in March|what is today's date
translate good evening to French|how do you say thank you in Japanese|what does bonjour mean
summarize the plot of Hamlet|who wrote Don Quixote|what is the theme of Moby Dick|when did Mozart die
play some music|set an alarm|turn off the lights|order a pizza|book a table for two|call my mother
who won the world cup in 1998|who was president in 1960|what happened in 1492|when did the second world war end
""".replace("\n", "|").split("|")

_TEST_ASKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "gardening": (
        ("how much light do {} want", "when should one plant {}", "my {} have brown spots, any advice?"),
        ("tomatoes", "tulips", "roses", "strawberries", "sunflowers"),
    ),
    "sports": (
        ("explain the rules of {}", "could a beginner start with {} at forty?", "which shoes suit {}?"),
        ("badminton", "rowing", "curling", "handball", "fencing"),
    ),
    "work": (
        (
            "my boss expects {} from me, is that fair?",
            "draft a polite refusal regarding {}",
            "any tips on negotiating {}?",
        ),
        ("overtime", "a pay rise", "a transfer abroad", "night shifts"),
    ),
    "history": (
        ("what led to {}?", "describe everyday life during {}", "was {} inevitable?"),
        ("the French Revolution", "the Bronze Age collapse", "the gold rush", "the fall of Constantinople"),
    ),
    "pets": (
        ("our {} refuses its food, what now?", "how do you train a {}?", "is a {} suitable for a small flat?"),
        ("puppy", "parrot", "hamster", "greyhound", "kitten"),
    ),
    "technology": (
        (
            "does a {} need an update?",
            "my {} keeps crashing",
            "compare the latest {} models",
            "who built the first {}?",
        ),
        ("phone", "printer", "drone", "smart watch", "television"),
    ),
    "philosophy": (
        ("is {} an illusion?", "what did Kant think about {}?", "can machines have {}?"),
        ("free will", "beauty", "consciousness", "justice"),
    ),
    "music": (
        ("which chords suit {}?", "how did {} begin as a genre?", "suggest an album of {}"),
        ("jazz", "flamenco", "the blues", "folk ballads"),
    ),
}
_TEST_LINES = """
Were Roman roads better than ours?|Can I still see Roman ruins in Spain?|Do clocks with Roman numerals look elegant?
What day suits you for a coffee?|Why is Friday the thirteenth feared?|Which weekdays are museums free?
Did ships rely on Morse during storms?|Was Samuel Morse a painter too?|Are telegraph operators still employed?
What dressing belongs on a Caesar salad?|Who betrayed Caesar?|How secure is modern encryption?
Is a career as a database administrator rewarding?|Which SQL book would you recommend?|Do banks still run old databases?
Is a binary star two suns?|Do witches put a hex on people?|What do non-binary people prefer to be called?
Do people born on leap day celebrate late?|What is a leap of faith?|How far can a frog leap?
Why are nautical miles longer?|Which country abandoned inches last?|Is a kilo of feathers lighter than it seems?
How do I pronounce Worcestershire?|Is there a word for the smell of rain?|Which letter is used most by poets?
Are love letters out of fashion?|Can I send letters without a stamp?|Who counts the votes on election night?
Which shelf brackets hold marble?|Has my tax bracket changed?|Do builders prefer steel brackets?
Are true crime podcasts harmful?|False friends in Spanish, what are they?|Is honesty always the best policy, yes or no?
Do I have to add salt to pasta water?|Does it all add up to a conspiracy?|Is plus size fashion growing?
Do rabbits multiply quickly?|Did the Babylonians have multiplication tables?|Is maths discovered or invented?
What sort of music calms babies?|How is waste sorted in Sweden?|Which order of monks brews beer?
Can a bus drive in reverse on a motorway?|Can ageing be reversed?|Why are ambulances lettered backwards?
Is thirteen an unlucky number?|Who called me from an unknown number?|How many words do toddlers know?
How many moons orbit Saturn?|How many bones are in the human body?|How many players are on a cricket team?
How much do teachers earn?|How much snow fell in the Alps?|What is the population of Brazil?
Would you like to chat?|You seem cheerful.|I passed my exam!|Congratulations on your launch|Guess what happened to me
My flight was cancelled|Let's play twenty questions|Surprise me with a fun fact|What's new?|Nice to meet you
Who painted the Mona Lisa?|What is the tallest building on Earth?|Which ocean is deepest?|Who discovered penicillin?
Should I lease or buy a van?|How do mortgages work?|Is inflation going down?|What is a fair tip in Italy?
How do vaccines work?|Can stress raise blood pressure?|Is yoga good for posture?|Which vitamins does winter call for?
Translate "see you soon" into German|What language is spoken in Angola?|How do you greet someone in Korean?
Write a haiku about fog|Compose a toast for my brother's wedding|Draft a cover letter for a librarian
What was invented in 1876?|Which treaty was signed in 1648?|Who reigned in England in 1588?
""".replace("\n", "|").split("|")

_WRAPPINGS = (
    "{}",
    "{}?",
    "hey, {}?",
    "hello, {}",
    "please {}",
    "can you tell me {}?",
    "quick question: {}?",
    "so, {}?",
)


def _filled(asks: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]) -> list[str]:
    return [ask.format(topic) for ask_list, topics in asks.values() for ask, topic in product(ask_list, topics)]


def _train() -> list[str]:
    rng, texts = Random("out of scope"), []
    lines = [line.strip() for line in _TRAIN_LINES if line.strip()]
    for text in _filled(_TRAIN_ASKS) + lines + lines:
        wrapped = rng.choice(_WRAPPINGS).format(text)
        texts.append(wrapped[:1].upper() + wrapped[1:] if rng.random() < 0.6 else wrapped)
    return list(dict.fromkeys(texts))


def _test() -> list[str]:
    texts = _filled(_TEST_ASKS) + [line.strip() for line in _TEST_LINES if line.strip()]
    return list(dict.fromkeys(text[:1].upper() + text[1:] for text in texts))


TRAIN: list[str] = _train()
TEST: list[str] = _test()
