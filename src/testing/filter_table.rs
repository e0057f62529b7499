//! A small model of one family's filter table, as iptables(8) shows it and
//! iptables-restore(8) changes it. Both flavours keep to what stands here.

/// A chain with its rules as `-S` prints them, behind `-A CHAIN `.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chain {
    name: String,
    is_built_in: bool,
    rules: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterTable {
    chains: Vec<Chain>,
}

/// A command that the kernel or the tool refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

impl FilterTable {
    /// The table of a host that has no rules.
    pub fn new() -> Self {
        let chain = |name: &str| Chain {
            name: name.to_owned(),
            is_built_in: true,
            rules: Vec::new(),
        };
        Self {
            chains: ["INPUT", "FORWARD", "OUTPUT"].map(chain).to_vec(),
        }
    }

    /// What `iptables -S` prints.
    pub fn listing(&self) -> String {
        let mut text = String::new();
        for chain in &self.chains {
            if chain.is_built_in {
                text += &format!("-P {} ACCEPT\n", chain.name);
            }
        }
        for chain in self.chains.iter().filter(|chain| !chain.is_built_in) {
            text += &format!("-N {}\n", chain.name);
        }
        for chain in &self.chains {
            for rule in &chain.rules {
                text += &format!("-A {} {rule}\n", chain.name);
            }
        }
        text
    }

    pub fn has_chain(&self, name: &str) -> bool {
        self.chains.iter().any(|chain| chain.name == name)
    }

    /// The rules of a chain; none where there is no such chain.
    pub fn rules(&self, name: &str) -> &[String] {
        let chain = self.chains.iter().find(|chain| chain.name == name);
        chain.map_or(&[], |chain| &chain.rules)
    }

    /// The rules of our chain.
    pub fn blocks(&self) -> &[String] {
        self.rules("TCPPARSER")
    }

    /// A whole batch or nothing; the number of the first line refused.
    /// `refused` names text that no line may hold.
    pub fn restore(&mut self, batch: &str, refused: Option<&str>) -> Result<(), usize> {
        let mut changed = self.clone();
        let mut lines = (1..).zip(batch.lines());
        if lines.next() != Some((1, "*filter")) {
            return Err(1);
        }
        for (number, line) in lines {
            if line == "COMMIT" {
                *self = changed;
                return Ok(());
            }
            if refused.is_some_and(|text| line.contains(text)) {
                return Err(number);
            }
            changed.command(line).map_err(|Refused| number)?;
        }
        // Without COMMIT nothing happens, and the tool says nothing.
        Ok(())
    }

    /// One command, as an operator types it behind `iptables`.
    pub fn command(&mut self, line: &str) -> Result<(), Refused> {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        match verb {
            "-N" => self.make_chain(name),
            "-X" => self.remove_chain(name),
            "-F" => self.chain(name).map(|chain| chain.rules.clear()),
            "-A" => {
                self.check_target(rest)?;
                self.chain(name)?.rules.push(rest.to_owned());
                Ok(())
            }
            "-I" => {
                let rule = rest.strip_prefix("1 ").ok_or(Refused)?;
                self.check_target(rule)?;
                self.chain(name)?.rules.insert(0, rule.to_owned());
                Ok(())
            }
            "-D" => {
                let rules = &mut self.chain(name)?.rules;
                let at = rules.iter().position(|rule| rule == rest).ok_or(Refused)?;
                rules.remove(at);
                Ok(())
            }
            _ => Err(Refused),
        }
    }

    fn chain(&mut self, name: &str) -> Result<&mut Chain, Refused> {
        let mut chains = self.chains.iter_mut();
        chains.find(|chain| chain.name == name).ok_or(Refused)
    }

    fn make_chain(&mut self, name: &str) -> Result<(), Refused> {
        if name.is_empty() || self.has_chain(name) {
            return Err(Refused);
        }
        self.chains.push(Chain {
            name: name.to_owned(),
            is_built_in: false,
            rules: Vec::new(),
        });
        Ok(())
    }

    /// Only an empty chain of the user's that nothing jumps to.
    fn remove_chain(&mut self, name: &str) -> Result<(), Refused> {
        let chain = self.chain(name)?;
        if chain.is_built_in || !chain.rules.is_empty() {
            return Err(Refused);
        }
        let is_jump = |rule: &String| target(rule) == Some(name);
        if self
            .chains
            .iter()
            .any(|chain| chain.rules.iter().any(is_jump))
        {
            return Err(Refused);
        }
        self.chains.retain(|chain| chain.name != name);
        Ok(())
    }

    fn check_target(&self, rule: &str) -> Result<(), Refused> {
        match target(rule) {
            Some("ACCEPT" | "DROP") => Ok(()),
            Some(name) if self.has_chain(name) => Ok(()),
            _ => Err(Refused),
        }
    }
}

fn target(rule: &str) -> Option<&str> {
    let words: Vec<&str> = rule.split(' ').collect();
    let at = words.iter().rposition(|word| *word == "-j")?;
    words.get(at + 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the real tools do, so that the model deserves its name.
    #[test]
    fn behaves_like_iptables() {
        let mut table = FilterTable::new();
        assert_eq!(table.restore("*filter\n-N T\n-N T\nCOMMIT\n", None), Err(3));
        assert!(!table.has_chain("T"), "a refused batch changes nothing");
        let batch = "*filter\n-N T\n-I INPUT 1 -j T\n-A T -s 192.0.2.1/32 -j DROP\nCOMMIT\n";
        assert_eq!(table.restore(batch, None), Ok(()));
        assert_eq!(
            table.listing(),
            "-P INPUT ACCEPT\n-P FORWARD ACCEPT\n-P OUTPUT ACCEPT\n-N T\n\
             -A INPUT -j T\n-A T -s 192.0.2.1/32 -j DROP\n"
        );
        for refused in [
            "-D T -s 192.0.2.2/32 -j DROP",
            "-X T",
            "-X INPUT",
            "-A U -j DROP",
            "-A T -j U",
            "-I INPUT 2 -j T",
        ] {
            assert_eq!(table.command(refused), Err(Refused), "{refused}");
        }
        assert_eq!(table.command("-F T"), Ok(()));
        assert_eq!(table.command("-X T"), Err(Refused), "INPUT refers to it");
        assert_eq!(table.command("-D INPUT -j T"), Ok(()));
        assert_eq!(table.command("-X T"), Ok(()));
        assert_eq!(table, FilterTable::new());
    }
}
