"""The tools: what they are called, what they take, how people ask for them and what they give back."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tasks import words

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """One tool. answer: the final sentence, made of the arguments and the result's values."""

    name: str
    about: str
    parameters: dict[str, str]  # name -> JSON type
    draw: Callable[[random.Random], Arguments]
    questions: list[str]
    result: Callable[[random.Random, Arguments], dict[str, Any]]
    answer: str
    few_values: bool = False

    def description(self) -> dict[str, Any]:
        """As OpenAI's chat API describes functions."""
        properties = {name: {"type": kind} for name, kind in self.parameters.items()}
        schema = {"type": "object", "properties": properties, "required": list(self.parameters)}
        return {"type": "function", "function": {"name": self.name, "description": self.about, "parameters": schema}}


def _done(rng: random.Random, arguments: Arguments) -> dict[str, Any]:
    return {"status": "ok"}


def _weather(rng: random.Random, arguments: Arguments) -> dict[str, Any]:
    return {"sky": rng.choice("sunny cloudy rainy windy foggy clear stormy".split()), "degrees": rng.randint(1, 35)}


def _message(rng: random.Random) -> Arguments:
    text = f"I {rng.choice(words.MESSAGE_VERBS)} {rng.choice(words.MESSAGE_ENDS)}"
    return {"to": rng.choice(words.RECEIVERS), "text": text}


def _route(rng: random.Random) -> Arguments:
    start, end = rng.sample(words.CITIES, 2)
    return {"start": start, "end": end}


def _convert(rng: random.Random) -> Arguments:
    source, target = rng.sample(words.CURRENCIES, 2)
    return {"amount": rng.randint(2, 999), "source": source, "target": target}


def _calculate(rng: random.Random) -> Arguments:
    most = rng.choice((99, 999, 9999))
    return {"expression": f"{rng.randint(2, most)} {rng.choice('+-*/')} {rng.randint(2, 999)}"}


FAMILIES = [
    Family(
        "get_weather", "Weather of a city.", {"city": "string"}, lambda rng: {"city": rng.choice(words.CITIES)},
        ["What is the weather in {city}?", "How is the weather in {city}?", "Weather in {city}?",
         "Is it sunny in {city}?",
         "Tell me the weather in {city}.", "What is the weather like in {city}?", "Is it raining in {city}?",
         "How warm is it in {city}?", "Please give me the weather of {city}.", "What's the weather in {city}?"],
        _weather, "The weather in {city}: {sky}, {degrees} degrees.",
    ),
    Family(
        "get_time", "Time of a city.", {"city": "string"}, lambda rng: {"city": rng.choice(words.CITIES)},
        ["What time is it in {city}?", "What is the time in {city}?", "Tell me the time in {city}.", "Time in {city}?",
         "How late is it in {city}?", "Please tell me what time it is in {city}.", "What's the time in {city}?",
         "Which time is it now in {city}?", "Give me the time in {city}.", "Current time in {city}?"],
        lambda rng, arguments: {"time": f"{rng.randint(10, 23)}:{rng.randint(10, 59)}"}, "It is {time} in {city}.",
    ),
    Family(
        "set_timer", "Set a timer.", {"minutes": "integer"}, lambda rng: {"minutes": rng.randint(1, 120)},
        ["Set a timer for {minutes} minutes.", "Set the timer to {minutes} minutes.",
         "Timer {minutes} minutes, please.",
         "Please set a timer for {minutes} minutes.", "Start a timer of {minutes} minutes.",
         "I need a timer for {minutes} minutes.",
         "Can you set a timer for {minutes} minutes?", "Wake me in {minutes} minutes.",
         "Remind me in {minutes} minutes.",
         "A timer for {minutes} minutes!"],
        _done, "The timer is set to {minutes} minutes.",
    ),
    Family(
        "send_message", "Send a message.", {"to": "string", "text": "string"}, _message,
        ["Tell {to} that {text}.", "Send a message to {to}: {text}.", "Write to {to}: {text}.", "Message {to}: {text}.",
         "Let {to} know that {text}.", "Please tell {to} that {text}.", "Send {to} the message: {text}.",
         "Text {to}: {text}.", "Can you tell {to} that {text}?", "Please write to {to}: {text}."],
        _done, "The message to {to} is sent.",
    ),
    Family(
        "search_web", "Search the web.", {"query": "string"},
        lambda rng: {"query": f"{rng.choice(words.QUERY_FIRST)} {rng.choice(words.QUERY_SECOND)}"},
        ["Search the web for {query}.", "Look for {query} on the web.", "Search for {query}.", "Find {query} online.",
         "Please search for {query}.", "Can you search the web for {query}?", "Look up {query}.", "Google {query}.",
         "I want to find {query} on the internet.", "Web search: {query}."],
        lambda rng, arguments: {"hits": rng.randint(2, 999)}, "I found {hits} pages about {query}.",
    ),
    Family(
        "play_music", "Play a song.", {"title": "string"},
        lambda rng: {"title": f"{rng.choice(words.TITLE_FIRST)} {rng.choice(words.TITLE_SECOND)}"},
        ["Play {title}.", "Please play {title}.", "Play the song {title}.", "I want to hear {title}.",
         "Put on {title}.",
         "Can you play {title}?", "Start the song {title}.", "Let me hear {title}.",
         "I would like to listen to {title}.",
         "Music: {title}."],
        _done, "Now playing {title}.",
    ),
    Family(
        "turn_on_light", "Turn on a light.", {"room": "string"}, lambda rng: {"room": rng.choice(words.ROOMS)},
        ["Turn on the light in the {room}.", "Switch on the light in the {room}.", "Light in the {room}, please.",
         "Turn the light on in the {room}.", "It is dark in the {room}.", "I need light in the {room}.",
         "Please turn on the {room} light.", "Can you turn on the light in the {room}?", "Light on in the {room}.",
         "Turn on the lights of the {room}."],
        _done, "The light in the {room} is on.", few_values=True,
    ),
    Family(
        "convert_currency", "Convert money.", {"amount": "integer", "source": "string", "target": "string"}, _convert,
        ["Convert {amount} {source} to {target}.", "How much is {amount} {source} in {target}?",
         "{amount} {source} in {target}?", "Change {amount} {source} into {target}.",
         "Please convert {amount} {source} to {target}.",
         "What are {amount} {source} in {target}?", "How many {target} are {amount} {source}?",
         "Can you convert {amount} {source} to {target}?", "I have {amount} {source}. How much is that in {target}?",
         "Exchange {amount} {source} for {target}."],
        lambda rng, arguments: {"value": rng.randint(2, 999)}, "{amount} {source} are {value} {target}.",
    ),
    Family(
        "add_event", "Add to the calendar.", {"title": "string", "day": "string"},
        lambda rng: {"title": rng.choice(words.EVENTS), "day": rng.choice(words.DAYS)},
        ["Add {title} on {day} to my calendar.", "Put {title} on {day} into the calendar.",
         "New event: {title} on {day}.",
         "Please add {title} for {day}.", "I have {title} on {day}, write it down.", "Plan {title} for {day}.",
         "Calendar: {title} on {day}.", "Note {title} on {day}.", "Can you add {title} on {day}?",
         "Add an event: {title}, {day}."],
        _done, "I added {title} on {day}.",
    ),
    Family(
        "translate", "Translate a text.", {"text": "string", "language": "string"},
        lambda rng: {"text": rng.choice(words.PHRASES), "language": rng.choice(words.LANGUAGES)},
        ['Translate "{text}" into {language}.', 'What is "{text}" in {language}?',
         'How do I say "{text}" in {language}?',
         'Please translate "{text}" to {language}.', 'Say "{text}" in {language}.', '"{text}" in {language}?',
         'How do you say "{text}" in {language}?', 'Can you translate "{text}" into {language}?',
         'I need "{text}" in {language}.', 'Give me "{text}" in {language}.'],
        _done, "The {language} text is ready.",
    ),
    Family(
        "get_stock", "Price of a stock.", {"symbol": "string"}, lambda rng: {"symbol": rng.choice(words.SYMBOLS)},
        ["What is the stock price of {symbol}?", "How is the {symbol} stock?", "Price of {symbol} stock?",
         "Tell me the price of {symbol}.", "How much is a share of {symbol}?", "Stock price of {symbol}, please.",
         "What does {symbol} stock cost?", "Get me the stock {symbol}.", "Where is the {symbol} stock today?",
         "Show me the stock price of {symbol}."],
        lambda rng, arguments: {"price": rng.randint(10, 999)}, "A share of {symbol} costs {price} dollars.",
        few_values=True,
    ),
    Family(
        "book_table", "Book a restaurant table.", {"people": "integer", "day": "string"},
        lambda rng: {"people": rng.randint(2, 12), "day": rng.choice(words.DAYS)},
        ["Book a table for {people} on {day}.", "A table for {people} people on {day}, please.",
         "Reserve a table for {people} on {day}.",
         "Please book a table for {people} people on {day}.", "I need a table for {people} on {day}.",
         "We are {people} on {day}, book a table.", "Can you book a table for {people} on {day}?",
         "Table for {people} on {day}.", "Get us a table on {day} for {people} people.",
         "Reserve a table on {day} for {people}."],
        _done, "The table for {people} on {day} is booked.",
    ),
    Family(
        "find_route", "Find a route.", {"start": "string", "end": "string"}, _route,
        ["How do I get from {start} to {end}?", "Find a route from {start} to {end}.", "Route from {start} to {end}?",
         "What is the way from {start} to {end}?", "Show me the way from {start} to {end}.",
         "I want to go from {start} to {end}.",
         "Please find the way from {start} to {end}.", "How far is it from {start} to {end}?",
         "Which road goes from {start} to {end}?", "Drive from {start} to {end}."],
        lambda rng, arguments: {"hours": rng.randint(2, 60)}, "From {start} to {end} it takes {hours} hours.",
    ),
    Family(
        "calculate", "Work out an expression.", {"expression": "string"}, _calculate,
        ["Calculate {expression}.", "What is {expression}?", "Compute {expression}.", "{expression}",
         "How much is {expression}?",
         "Please calculate {expression}.", "Work out {expression}.", "{expression} = ?",
         "Can you calculate {expression}?",
         "Tell me {expression}."],
        lambda rng, arguments: {"value": rng.randint(100, 99999)}, "{expression} = {value}.",
    ),
]  # fmt: skip
