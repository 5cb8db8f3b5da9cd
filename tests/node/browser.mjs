// A real Chromium that reaches nothing but this machine, and a page in it that may not complain.

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { chromium } from 'playwright-core';

const ARGUMENTS = [
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-gpu',
  '--disable-quic',
  '--disable-sync',
  '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1',
];

// Run `scenario(page)` and throw if it does, or if the page asked for anything elsewhere, logged an error (which
// a breach of its policy is) or raised one. A picture of a page that failed goes to `folder`.
export async function withPage(executablePath, folder, scenario) {
  const profile = await mkdtemp(join(tmpdir(), 'parley-chromium-'));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath,
    args: ARGUMENTS,
    chromiumSandbox: false,
    viewport: { width: 1280, height: 800 },
  });
  try {
    const complaints = [];
    const page = context.pages()[0];
    page.setDefaultTimeout(20_000);
    context.on('request', (request) => {
      const { protocol, hostname } = new URL(request.url());
      const own = hostname === '127.0.0.1' || ['data:', 'blob:'].includes(protocol);
      if (!own) complaints.push(`asked for ${request.url()}`);
    });
    page.on('console', (message) => message.type() === 'error' && complaints.push(message.text()));
    page.on('pageerror', (error) => complaints.push(String(error)));
    try {
      await scenario(page);
    } catch (error) {
      await page.screenshot({ path: join(folder, 'failed.png') });
      throw new AggregateError(complaints, error.message, { cause: error });
    }
    if (complaints.length) throw new Error(`the page complained:\n${complaints.join('\n')}`);
  } finally {
    await context.close();
    await rm(profile, { recursive: true, force: true });
  }
}
