// node pages.mjs CHROMIUM URL FOLDER SCENARIO
//
// Does what a person would with Parley's pages, and ends with status 0 if it went as it should. Pictures of the
// pages go to FOLDER.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { withPage } from './browser.mjs';

const [chromium, url, folder, name] = process.argv.slice(2);

const picture = (page, title) => page.screenshot({ path: join(folder, `${title}.png`) });
const reply = (page) => page.locator('article.reply').last();
const ended = (page, status) => page.locator(`article.reply:last-of-type[data-status="${status}"]`).waitFor();
const textOf = async (page) => (await reply(page).locator('.markdown').innerText()).trim();
const words = (count) => Array.from({ length: count }, (_, index) => `w${index + 1}`).join(' ');

async function ask(page, model, message) {
  await page.getByLabel('Model').selectOption(model);
  await page.getByLabel('Message', { exact: true }).fill(message);
  await page.keyboard.press('Enter');
}

async function chat(page, model, message) {
  await page.goto(url);
  await ask(page, model, message);
}

async function graphiql(page, operation, address = '/graphql') {
  await page.goto(url + address);
  const editor = page.locator('.graphiql-query-editor .monaco-editor').first();
  await editor.click();
  await page.keyboard.press('ControlOrMeta+A');
  await page.keyboard.press('Delete');
  await page.keyboard.insertText(operation);
  const [, title] = /^\w+ (\w+)/.exec(operation);
  await page.getByRole('tab', { name: title }).waitFor(); // GraphiQL has read it
  await page.keyboard.press('ControlOrMeta+Enter');
}

const answered = (page, text) => page.locator('.result-window').filter({ hasText: text }).waitFor();

// In one line: the editor closes a brace that ends a line by itself.
const SUBSCRIPTION =
  'subscription Count { streamMessage(input: {message: "a", model: "scripted:words 5 every 20ms"}) ' +
  '{ __typename ... on GenerationCompleted { message { content } } } }';

const DEMO = 'hf:SmolLM2-135M-Instruct';
const FALLS_SILENT = 'scripted:words 10 every 20ms;stall';

const MARKDOWN = `Some **bold** and \`code\`, then <img src=x onerror="document.title=1"> and
[a link](https://example.org/), [a trap](javascript:document.title=1), ![a picture](data:image/png;base64,AA).

## A heading

- one
- two

1. first
2. second

> quoted <script>document.title = 1</script>

\`\`\`python
def fibonacci(n: int) -> int:
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)  # a line that is longer than a phone is wide
\`\`\`

| city | country |
|---|---|
| Paris | France |
`;

const scenarios = {
  async 'the chat page streams a reply'(page) {
    await chat(page, 'scripted:words 60 every 20ms', 'Count for me.');
    await page.locator('article.reply[data-status="GENERATING"]').getByText('w3').waitFor();
    await ended(page, 'COMPLETED');
    assert.equal(await textOf(page), words(60));
    assert.equal(await page.locator('.asked').innerText(), 'Count for me.');
    await page.getByRole('navigation').getByText('Count for me.').waitFor();
  },

  async 'the chat page streams a reply of a real model'(page) {
    await chat(page, DEMO, 'What is the capital of France?');
    await ended(page, 'COMPLETED');
    assert.match(await textOf(page), /Paris/);
    await page.getByLabel('Model').getByText('SmolLM2-135M-Instruct · ready').waitFor({ state: 'attached' });
    await ask(page, DEMO, 'Tell me about it in three short points.');
    await page.locator('article.reply').nth(1).locator('.markdown').waitFor();
    await picture(page, 'chat-real-model');
    await ended(page, 'COMPLETED');
  },

  async 'a phase is shown while no text comes'(page) {
    await chat(page, 'scripted:load 2s;wait 500ms;reason Thinking;words 20 every 50ms', 'Think.');
    await page
      .getByRole('status')
      .filter({ hasText: /loading the model/i })
      .waitFor();
    await picture(page, 'chat-loading');
    await page.reload();
    await page.getByText('Thoughts').waitFor();
    await ended(page, 'COMPLETED');
    assert.equal(await textOf(page), words(20));
  },

  async 'another try is announced with its reason'(page) {
    await chat(page, 'scripted:flap;words 10 every 20ms', 'Try.');
    const announced = /trying again in .+ s \(try 2 of 4\): scripted: fails each odd time/;
    await page.getByRole('status').filter({ hasText: announced }).waitFor();
    await picture(page, 'chat-retrying');
    await ended(page, 'COMPLETED');
    assert.equal(await textOf(page), words(10));
  },

  async 'Stop ends a reply and keeps its text'(page) {
    await chat(page, FALLS_SILENT, 'Go on.');
    await reply(page).getByText('w10').waitFor();
    await page.getByRole('button', { name: 'Stop' }).click();
    await ended(page, 'STOPPED');
    assert.equal(await textOf(page), words(10));
    await page.getByRole('button', { name: 'Send' }).waitFor();
  },

  async 'Escape stops, Shift+Enter begins a line'(page) {
    await page.goto(url);
    await page.getByLabel('Model').selectOption(FALLS_SILENT);
    await page.getByLabel('Message', { exact: true }).fill('one');
    await page.keyboard.press('Shift+Enter');
    await page.keyboard.type('two');
    await page.keyboard.press('Enter');
    await reply(page).getByText('w10').waitFor();
    assert.equal(await page.locator('.asked').innerText(), 'one\ntwo');
    await page.keyboard.press('Escape');
    await ended(page, 'STOPPED');
  },

  async 'a reload in mid-reply takes it up again'(page) {
    await chat(page, FALLS_SILENT, 'Go on.');
    await reply(page).getByText('w10').waitFor();
    await page.reload();
    await reply(page).getByText('w10').waitFor();
    assert.equal(await textOf(page), words(10));
    assert.equal(await reply(page).getAttribute('data-status'), 'GENERATING');
    assert.equal(await page.getByLabel('Model').inputValue(), FALLS_SILENT);
    await page.getByRole('button', { name: 'Stop' }).click();
    await ended(page, 'STOPPED');
  },

  async 'a lost connection is taken up again'(page) {
    let sockets = 0;
    await page.routeWebSocket(/graphql/, (client) => {
      const server = client.connectToServer();
      if (sockets++) return;
      let messages = 0;
      server.onMessage((message) => {
        client.send(message);
        if (++messages === 3) server.close().then(() => client.close({ code: 1011 }));
      });
    });
    await chat(page, 'scripted:words 60 every 20ms', 'Count for me.');
    await ended(page, 'COMPLETED');
    assert.equal(await textOf(page), words(60));
    assert.equal(sockets, 2);
  },

  async 'what another tab does is shown'(page) {
    await chat(page, 'scripted:history', 'First.');
    await ended(page, 'COMPLETED');
    const other = await page.context().newPage();
    await other.goto(page.url());
    await other.locator('.asked').getByText('First.').waitFor();
    await ask(other, FALLS_SILENT, 'Second.');
    await page.locator('.asked').getByText('Second.').waitFor();
    await reply(page).getByText('w10').waitFor();
    await page.getByRole('button', { name: 'Stop' }).click();
    await ended(other, 'STOPPED');
    await ended(page, 'STOPPED');
    assert.equal(await page.locator('article').count(), 4);
    assert.equal(await other.locator('article').count(), 4);
  },

  async 'a conversation that is deleted elsewhere is left'(page) {
    await chat(page, 'scripted:history', 'To be deleted.');
    await ended(page, 'COMPLETED');
    const id = new URL(page.url()).hash.slice(1);
    const query = 'mutation ($id: ID!) { deleteConversation(id: $id) }';
    await page.request.post(`${url}/graphql`, { data: { query, variables: { id } } });
    await page.getByRole('alert').filter({ hasText: 'This conversation was deleted.' }).waitFor();
    await page.getByText('What would you like to know?').waitFor();
    await page.locator(`a[href="#${id}"]`).waitFor({ state: 'detached' });
    assert.equal(new URL(page.url()).hash, '');
  },

  async 'a failure is shown with its code, and what came before it stays'(page) {
    await chat(page, 'scripted:words 40 every 20ms;cut', 'Count for me.');
    await ended(page, 'FAILED');
    assert.equal(await textOf(page), words(40));
    await reply(page).getByRole('alert').filter({ hasText: 'STREAM_BROKEN' }).waitFor();
    await ask(page, 'scripted:429 retry-after 60s', 'Again.');
    await reply(page).getByRole('alert').filter({ hasText: 'OVERLOADED' }).waitFor();
    await picture(page, 'chat-failures');
  },

  async 'a refused message stays in its box'(page) {
    await page.goto(url);
    await page.getByLabel('Model').selectOption('scripted:history');
    const long = 'x'.repeat(2_000_000);
    await page.getByLabel('Message', { exact: true }).fill(long);
    await page.keyboard.press('Enter');
    await page.getByRole('alert').filter({ hasText: 'BAD_INPUT' }).waitFor();
    assert.equal((await page.getByLabel('Message', { exact: true }).inputValue()).length, long.length);
    await page.getByLabel('Message', { exact: true }).fill('short');
    await page.keyboard.press('Enter');
    await ended(page, 'COMPLETED');
  },

  async 'what a model writes is shown and never run'(page) {
    await chat(page, 'scripted:echo every 20ms', MARKDOWN);
    await ended(page, 'COMPLETED');
    const shown = reply(page).locator('.markdown');
    for (const kind of ['strong', 'pre code', 'ul li', 'ol li', 'table td', 'blockquote', 'a']) {
      await shown.locator(kind).first().waitFor();
    }
    assert.equal(await shown.locator('img, script, iframe, [onerror], [style]').count(), 0);
    assert.deepEqual(await shown.locator('a').evaluateAll((links) => links.map((link) => link.href)), [
      'https://example.org/',
    ]);
    assert.ok((await shown.innerText()).includes('<img src=x onerror="document.title=1">'));
    assert.equal(await page.title(), 'Parley');
    await picture(page, 'chat-markdown');
  },

  async 'an earlier conversation is opened, and a new one begun'(page) {
    await chat(page, 'scripted:history', 'The first of them.');
    await ended(page, 'COMPLETED');
    await page.getByRole('link', { name: 'New conversation' }).click();
    await page.getByText('What would you like to know?').waitFor();
    await ask(page, 'scripted:history', 'The second of them.');
    await ended(page, 'COMPLETED');
    await page.getByRole('navigation').getByText('The first of them.').first().click();
    await page.locator('.asked').getByText('The first of them.').waitFor();
    assert.equal(await page.locator('article').count(), 2);
    await page.goBack();
    await page.locator('.asked').getByText('The second of them.').waitFor();
  },

  async 'it fits a phone, and the dark'(page) {
    await page.emulateMedia({ colorScheme: 'dark' });
    await page.goto(url);
    await page.getByText('What would you like to know?').waitFor();
    await picture(page, 'chat-welcome-dark');
    await ask(page, 'scripted:echo every 20ms', MARKDOWN);
    await ended(page, 'COMPLETED');
    await picture(page, 'chat-dark');
    await page.setViewportSize({ width: 360, height: 720 });
    assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 360);
    await picture(page, 'chat-phone-dark');
    await page.emulateMedia({ colorScheme: 'light' });
    await picture(page, 'chat-phone');
    await page.getByRole('button', { name: 'Conversations' }).click();
    await page.getByRole('link', { name: 'New conversation' }).waitFor();
    await picture(page, 'chat-phone-sidebar');
    await page.getByRole('link', { name: 'New conversation' }).click();
    await page.getByText('What would you like to know?').waitFor();
  },

  async 'GraphiQL runs a query, and knows the schema'(page) {
    await graphiql(page, 'query Listed { availableModels(provider: "scripted") { name } }');
    await answered(page, 'scripted:history');
    await page.getByRole('button', { name: 'Show Documentation Explorer' }).click();
    const explorer = page.locator('.graphiql-plugin');
    await explorer.getByText('Query', { exact: true }).click();
    await explorer.getByText('What can be asked.').waitFor();
    await picture(page, 'graphiql-query');
  },

  async 'GraphiQL fits a phone'(page) {
    await page.setViewportSize({ width: 375, height: 780 });
    await page.goto(`${url}/graphql`);
    await page.getByRole('button', { name: 'Execute query' }).click();
    await page.getByRole('menuitem', { name: 'Models' }).click();
    await answered(page, 'availableModels');
    const { width, height } = await page.locator('.graphiql-response').boundingBox();
    assert.ok(width > 250 && height > 250, `the answer has ${width} by ${height} pixels`);
    await picture(page, 'graphiql-phone');
  },

  async 'GraphiQL fits the dark'(page) {
    await page.emulateMedia({ colorScheme: 'dark' });
    await graphiql(page, 'query Named { providers { name } }');
    await answered(page, 'scripted');
    await picture(page, 'graphiql-dark');
  },

  async 'GraphiQL runs a subscription over a WebSocket'(page) {
    const sockets = [];
    page.on('websocket', (socket) => sockets.push(socket.url()));
    await graphiql(page, SUBSCRIPTION);
    await answered(page, words(5));
    assert.deepEqual(sockets, [`${url.replace('http', 'ws')}/graphql`]);
    await picture(page, 'graphiql-subscription');
  },

  async 'GraphiQL runs a subscription over an event stream'(page) {
    const sockets = [];
    page.on('websocket', (socket) => sockets.push(socket.url()));
    await graphiql(page, SUBSCRIPTION, '/graphql?transport=sse');
    await answered(page, words(5));
    assert.deepEqual(sockets, []);
  },
};

const scenario = scenarios[name];
assert.ok(scenario, `there is no scenario ${name}; there are ${Object.keys(scenarios).join(', ')}`);
await withPage(chromium, folder, scenario);
