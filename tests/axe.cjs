// One page in headless Chromium, looked at by axe-core. `tests/axe.py` starts it; node's module path has the packages.
// In: a JSON object as the only argument (tests/axe.py: look). Out: what was seen, as one line of JSON.
"use strict";
const { chromium } = require("playwright-core");

const FLAGS = [
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

async function look(asked) {
  const browser = await chromium.launch({ executablePath: asked.browser, args: FLAGS, chromiumSandbox: false });
  try {
    const page = await browser.newPage({
      viewport: { width: asked.width, height: asked.height },
      colorScheme: asked.scheme,
    });
    const seen = { requested: [], errors: [] };
    page.on("request", (request) => seen.requested.push(request.url()));
    page.on("pageerror", (error) => seen.errors.push(String(error)));
    await page.goto(asked.url, { waitUntil: "load" });
    if (asked.wait_for) await page.waitForSelector(asked.wait_for, { timeout: asked.timeout_ms });
    if (asked.screenshot) await page.screenshot({ path: asked.screenshot, fullPage: asked.whole });
    if (asked.pdf) await page.pdf({ path: asked.pdf, format: "A4" });
    // What is folded away is part of the page.
    await page.evaluate(() => document.querySelectorAll("details").forEach((each) => (each.open = true)));
    await page.addScriptTag({ path: require.resolve("axe-core/axe.min.js") });
    const found = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
    seen.violations = found.violations.map((rule) => ({
      rule: rule.id,
      impact: rule.impact || "minor",
      help: rule.help,
      where: rule.nodes.map((node) => node.target.flat().join(" ")),
    }));
    seen.answer = asked.script ? await page.evaluate(asked.script) : null;
    return seen;
  } finally {
    await browser.close();
  }
}

look(JSON.parse(process.argv[2])).then(
  (seen) => console.log(JSON.stringify(seen)),
  (error) => {
    console.error(String(error));
    process.exitCode = 1;
  },
);
