/* Linked into the static iptables (static-iptables.sh) with the linker's
 * --wrap=xtables_find_match. Its listing ends with an error at a match that
 * it was built without; with this it names the match and goes on, so that a
 * rule of another program does not keep tcpparser from reading its own. */
#include <stdio.h>
#include <xtables.h>

struct xtables_match *__real_xtables_find_match(const char *name, enum xtables_tryload tryload,
						struct xtables_rule_match **matches);
struct xtables_match *__wrap_xtables_find_match(const char *name, enum xtables_tryload tryload,
						struct xtables_rule_match **matches);

/* Nothing that iptables-restore would take for the whole rule. */
static void save(const void *ip, const struct xt_entry_match *match)
{
	(void)ip, (void)match;
	printf(" [unknown here]");
}

struct xtables_match *__wrap_xtables_find_match(const char *name, enum xtables_tryload tryload,
						struct xtables_rule_match **matches)
{
	static struct xtables_match unknown = {.save = save};
	struct xtables_match *match = __real_xtables_find_match(name, tryload, matches);

	/* Who reads a rule from its words passes a list to add to. */
	if (match || matches || tryload != XTF_TRY_LOAD)
		return match;
	unknown.name = name;
	return &unknown;
}
