//! Commands in the `sh` blocks of a Markdown page, as far as documentation writes them.

/// One simple command: what a pipe or `&&` joins is taken apart.
#[derive(Debug, PartialEq)]
pub(super) struct Command {
    /// The line of the page where it begins, from 1.
    pub(super) line: usize,
    /// Its words, quotes removed, without `sudo`, variables set for it, and redirections.
    pub(super) words: Vec<String>,
}

/// All commands of a page's `sh` blocks.
pub(super) fn commands(page: &str) -> Vec<Command> {
    let mut found = Vec::new();
    let mut inside = false;
    // A command that a backslash carries on to the next line, with the line it began at.
    let mut open: Option<(usize, String)> = None;
    for (index, text) in page.lines().enumerate() {
        let trimmed = text.trim();
        if trimmed.starts_with("```") {
            inside = !inside && trimmed == "```sh";
            open = None;
            continue;
        }
        if !inside {
            continue;
        }
        let (line, mut whole) = open.take().unwrap_or((index + 1, String::new()));
        match trimmed.strip_suffix('\\') {
            Some(part) => {
                whole += part;
                open = Some((line, whole));
            }
            None => {
                whole += trimmed;
                found.extend(simple(&whole).into_iter().map(|words| Command { line, words }));
            }
        }
    }
    found
}

/// The simple commands of one logical line.
fn simple(line: &str) -> Vec<Vec<String>> {
    let line = line.strip_prefix("$ ").unwrap_or(line);
    let words = words(line);
    let parts = words.split(|word| matches!(word, Word::Operator));
    parts.map(clean).filter(|words| !words.is_empty()).collect()
}

enum Word {
    Text(String),
    Redirect,
    Operator,
}

fn words(line: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut current: Option<String> = None;
    let mut quote: Option<char> = None;
    for letter in line.chars() {
        match (quote, letter) {
            (Some(open), _) if letter == open => quote = None,
            (Some(_), _) => current.get_or_insert_default().push(letter),
            (None, '\'' | '"') => {
                current.get_or_insert_default();
                quote = Some(letter);
            }
            (None, '#') if current.is_none() => break,
            (None, ' ' | '\t') => words.extend(current.take().map(Word::Text)),
            (None, '|' | '&' | ';') => {
                words.extend(current.take().map(Word::Text));
                words.push(Word::Operator);
            }
            (None, '>' | '<') => {
                // The number of a file descriptor belongs to the redirection.
                words.extend(current.take().filter(|text| text.parse::<u8>().is_err()).map(Word::Text));
                words.push(Word::Redirect);
            }
            (None, _) => current.get_or_insert_default().push(letter),
        }
    }
    words.extend(current.map(Word::Text));
    words
}

fn clean(words: &[Word]) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    let mut after_redirect = false;
    for word in words {
        match word {
            Word::Redirect => after_redirect = true,
            Word::Text(_) if after_redirect => after_redirect = false,
            Word::Text(text) => texts.push(text.clone()),
            Word::Operator => {}
        }
    }
    let is_prefix = |word: &String| matches!(word.as_str(), "sudo" | "exec" | "time") || is_assignment(word);
    let start = texts.iter().position(|word| !is_prefix(word)).unwrap_or(texts.len());
    texts.split_off(start)
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty() && name.chars().all(|letter| letter.is_ascii_uppercase() || letter == '_')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words_of(page: &str) -> Vec<(usize, String)> {
        commands(page).into_iter().map(|command| (command.line, command.words.join(" "))).collect()
    }

    #[test]
    fn only_sh_blocks_count() {
        let page = "galen no\n```yaml\ngalen: no\n```\n```sh\ngalen doctor\n```\n```\ngalen no\n```\n";
        assert_eq!(words_of(page), [(6, "galen doctor".to_owned())]);
    }

    #[test]
    fn prompts_prefixes_comments_and_joins_are_taken_apart() {
        let page = "```sh\n$ sudo GALEN_NODE=a galen agent # runs\ncd x && galen status | head -3\n```\n";
        let expected = [(2, "galen agent"), (3, "cd x"), (3, "galen status"), (3, "head -3")];
        assert_eq!(words_of(page), expected.map(|(line, text)| (line, text.to_owned())));
    }

    #[test]
    fn a_backslash_joins_lines_and_redirections_go() {
        let page = "```sh\ngalen check \\\n  --timeout '2 s' >out.txt 2>&1\n```\n";
        let found = commands(page);
        assert_eq!(found[0].line, 2);
        assert_eq!(found[0].words, ["galen", "check", "--timeout", "2 s"]);
    }
}
