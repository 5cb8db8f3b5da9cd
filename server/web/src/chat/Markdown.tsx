import { lexer, type Token, type Tokens } from 'marked';
import type { ComponentChildren } from 'preact';
import { useMemo } from 'preact/hooks';

const LONGEST = 200_000;

/** A model's text with its Markdown shown. It becomes elements of these kinds and text, never markup: HTML in it
 * is shown as it was written, and images as links. */
export function Markdown({ text }: { text: string }) {
  const content = useMemo(() => parsed(text), [text]);
  return <div class="markdown">{content}</div>;
}

function parsed(text: string): ComponentChildren {
  try {
    if (text.length <= LONGEST) return all(lexer(text));
  } catch {
    // Nested deeper than the stack: shown as it is.
  }
  return <p class="verbatim">{text}</p>;
}

function all(tokens: Token[] | undefined): ComponentChildren {
  return tokens?.map((token) => one(token as Tokens.Generic));
}

function one(token: Tokens.Generic): ComponentChildren {
  switch (token.type) {
    case 'space':
    case 'def':
      return null;
    case 'heading':
      return <p class={`heading level-${token.depth}`}>{all(token.tokens)}</p>;
    case 'paragraph':
      return <p>{all(token.tokens)}</p>;
    case 'blockquote':
      return <blockquote>{all(token.tokens)}</blockquote>;
    case 'code':
      return (
        <pre tabIndex={0}>
          <code>{token.text}</code>
        </pre>
      );
    case 'list':
      return <List list={token as Tokens.List} />;
    case 'table':
      return <Table table={token as Tokens.Table} />;
    case 'hr':
      return <hr />;
    case 'strong':
      return <strong>{all(token.tokens)}</strong>;
    case 'em':
      return <em>{all(token.tokens)}</em>;
    case 'del':
      return <del>{all(token.tokens)}</del>;
    case 'codespan':
      return <code>{token.text}</code>;
    case 'br':
      return <br />;
    case 'link':
      return <Link to={token.href}>{all(token.tokens)}</Link>;
    case 'image':
      return <Link to={token.href}>{token.text || token.href}</Link>;
    case 'checkbox':
      return <input type="checkbox" checked={token.checked} disabled />;
    case 'text':
    case 'escape':
      return token.tokens ? all(token.tokens) : token.text;
    default:
      return token.raw;
  }
}

function List({ list }: { list: Tokens.List }) {
  const items = list.items.map((item, index) => <li key={index}>{all(item.tokens)}</li>);
  return list.ordered ? <ol start={Number(list.start) || 1}>{items}</ol> : <ul>{items}</ul>;
}

function Table({ table }: { table: Tokens.Table }) {
  return (
    <div class="table" tabIndex={0}>
      <table>
        <thead>
          <tr>
            {table.header.map((cell, column) => (
              <th key={column}>{all(cell.tokens)}</th>
            ))}
          </tr>
        </thead>
        <tbody>
          {table.rows.map((row, index) => (
            <tr key={index}>
              {row.map((cell, column) => (
                <td key={column}>{all(cell.tokens)}</td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** Only to where following it cannot run anything here. */
function Link({ to, children }: { to: string; children: ComponentChildren }) {
  if (!/^(https?|mailto):/i.test(to)) return <>{children}</>;
  return (
    <a href={to} target="_blank" rel="noopener noreferrer">
      {children}
    </a>
  );
}
