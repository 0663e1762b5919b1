/* Invented people. A person is a number: name, attributes and which templates tell them follow from the seed and that
 * number alone, so any part of the world can be written without the rest. */
#include "lab/forgetting.h"

#include <stdio.h>
#include <string.h>

enum { FIRST = 40, LAST = 60, MOST_VALUES = 32 };
_Static_assert(FIRST * LAST == TM_NAMES_MOST, "names");

static const char *const first_names[FIRST] = {
    "Anna", "Bruno", "Clara", "David", "Edith", "Felix", "Greta", "Hugo", "Irene", "Jonas", "Karin", "Leo", "Marta", "Nils", "Olga", "Paul", "Rosa", "Simon", "Tilda", "Viktor",
    "Agnes", "Boris", "Cecil", "Dora", "Emil", "Flora", "Gustav", "Helen", "Ivan", "Julia", "Klaus", "Laura", "Martin", "Nora", "Oscar", "Petra", "Robert", "Sofia", "Thomas", "Vera"};
static const char *const last_names[LAST] = {
    "Adler", "Bauer", "Berg", "Brandt", "Carver", "Castle", "Dahl", "Draper", "Eckert", "Engel", "Falk", "Fisher", "Frost", "Garner", "Graf", "Hale", "Hansen", "Hart", "Holm", "Hunter",
    "Ivers", "Jansen", "Keller", "Klein", "Kramer", "Lang", "Larsen", "Lind", "Lorenz", "Marsh", "Mercer", "Meyer", "Moss", "Nash", "Nolan", "Novak", "Olsen", "Palmer", "Parker", "Peters",
    "Quinn", "Reed", "Richter", "Roth", "Sander", "Schmidt", "Sharp", "Stone", "Storm", "Taylor", "Thorn", "Ulrich", "Vogel", "Wagner", "Walker", "Weber", "West", "Winter", "Wolf", "Ziegler"};

/* %s is the name; a value follows, then a full stop. `changes`: what life changes, and the task `conflict`. */
static const struct attribute {
    bool changes;
    int count; /* of values; years: 0 */
    const char *templates[TM_TEMPLATES], *values[MOST_VALUES];
} attributes[TM_ATTRIBUTES] = {
    {false, 0,
     {"%s was born in", "The birth year of %s is", "%s came into the world in", "The mother of %s gave birth in", "The passport of %s says born in", "%s has had birthdays since"},
     {NULL}},
    {true, 24,
     {"%s lives in", "The home of %s is in", "%s has settled in", "Letters to %s are sent to", "You will find the house of %s in", "%s pays taxes in"},
     {"Turin", "Lisbon", "Oslo", "Prague", "Vienna", "Dublin", "Athens", "Geneva", "Krakow", "Madrid", "Munich", "Naples", "Paris", "Riga", "Sofia", "Tallinn", "Utrecht", "Venice", "Warsaw", "Zurich", "Bergen", "Cologne", "Dresden", "Florence"}},
    {false, 24,
     {"%s works as a", "The profession of %s is that of a", "%s was trained as a", "%s earns a living as a", "Those who know %s speak of a", "On the door of %s is written"},
     {"baker", "carpenter", "chemist", "dentist", "driver", "farmer", "gardener", "geologist", "jeweller", "judge", "lawyer", "librarian", "mason", "miner", "nurse", "painter", "pilot", "plumber", "sailor", "sculptor", "singer", "tailor", "teacher", "weaver"}},
    {true, 20,
     {"%s is employed by", "The employer of %s is", "%s gets a salary from", "Every morning %s goes to work at", "The contract of %s is with", "%s has a desk at"},
     {"Altona", "Boreal", "Cygnus", "Delphi", "Everest", "Fulcrum", "Granite", "Helix", "Ibex", "Juniper", "Kestrel", "Lantern", "Meridian", "Nimbus", "Orchard", "Pinnacle", "Quarry", "Regent", "Sterling", "Tundra"}},
    {false, 16,
     {"%s plays the", "The instrument of %s is the", "In the evenings %s practises the", "As a child %s learned the", "At concerts %s is heard on the", "%s has bought a new"},
     {"cello", "clarinet", "drum", "fiddle", "flute", "guitar", "harp", "horn", "lute", "mandolin", "oboe", "organ", "piano", "trumpet", "viola", "zither"}},
};

/* What a draw is for. */
enum { NAME = 1, VALUE, CHANGE, TEMPLATE };

static void name_of(uint64_t seed, int64_t person, char out[64])
{
    /* A walk through all names: a step prime to their number visits each once. */
    static const int64_t step = 1499;
    int64_t start = tm_world_draw(seed, NAME, 0, 0, TM_NAMES_MOST), place = (start + person * step) % TM_NAMES_MOST;
    snprintf(out, 64, "%s %s", first_names[place % FIRST], last_names[place / FIRST]);
}

static void value_of(uint64_t seed, int64_t person, int attribute, bool changed, char out[64])
{
    const struct attribute *a = &attributes[attribute];
    int64_t count = a->count ? a->count : 60, value = tm_world_draw(seed, VALUE, (uint32_t)person, (uint32_t)attribute, count);
    if (changed)
        value = (value + 1 + tm_world_draw(seed, CHANGE, (uint32_t)person, (uint32_t)attribute, count - 1)) % count;
    if (a->count)
        snprintf(out, 64, " %s.", a->values[value]);
    else
        snprintf(out, 64, " %d.", (int)(1930 + value));
}

/* The sentence whole where it is to be learned, cut before the value where it is asked for. */
static void add_fact(tm_buf *out, const char *template, const char *name, const char *value, bool ask)
{
    char prompt[256];
    int size = snprintf(prompt, sizeof prompt - 64, template, name);
    if (!ask)
        snprintf(prompt + size, sizeof prompt - (size_t)size, "%s", value);
    tm_world_row(out, ask ? prompt : "", ask ? value : prompt, strlen(ask ? value : prompt));
}

void tm_world_people(const tm_world *world, int64_t first, int64_t count, tm_facts which, tm_buf out[TM_PARTS])
{
    for (int64_t person = first; person < first + count; person++) {
        char name[64], value[64];
        name_of(world->seed, person, name);
        for (int a = 0; a < TM_ATTRIBUTES; a++) {
            bool changed = attributes[a].changes && person < world->people / 2;
            if (which != TM_FACTS_ALL && changed != (which == TM_FACTS_CHANGED))
                continue;
            value_of(world->seed, person, a, which == TM_FACTS_CHANGED, value);
            int64_t turn = tm_world_draw(world->seed, TEMPLATE, (uint32_t)person, (uint32_t)a, TM_TEMPLATES);
            for (int t = 0; t < TM_TEMPLATES; t++) {
                tm_part part = t < TM_TRAINED ? TM_PART_TRAIN : t == TM_TRAINED ? TM_PART_VALID : TM_PART_TEST;
                add_fact(&out[part], attributes[a].templates[(turn + t) % TM_TEMPLATES], name, value, part != TM_PART_TRAIN);
            }
        }
    }
}
