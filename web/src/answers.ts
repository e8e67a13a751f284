// Requests to the server that this page came from. Whatever goes wrong becomes a sentence for a person.

/** What a person is shown: the server's own sentence, or what happened on the way to it. */
export class Sentence extends Error {
  /** @param status of the answer; 0 where there was none. @param retryS after how many seconds to try again. */
  constructor(text: string, readonly status = 0, readonly retryS = 0) {
    super(text);
  }
}

let token = "";

/** Show this token with every request from now on; services that others can reach ask for one. */
export function authorise(text: string): void {
  token = text;
}

/** Whether an address needs the token, so that a plain link would be refused. */
export function guarded(): boolean {
  return token !== "";
}

const GONE = "The server does not answer. It may have been stopped: start it again, then reload this page.";

/** As fetch, but anything other than success is thrown as a Sentence. */
export async function ask(address: string, init: RequestInit = {}): Promise<Response> {
  let answer: Response;
  try {
    const headers: HeadersInit = token ? { Authorization: `Bearer ${token}` } : {};
    answer = await fetch(address, { ...init, headers });
  } catch {
    throw new Sentence(GONE);
  }
  if (answer.ok) return answer;
  throw new Sentence(await said(answer), answer.status, Number(answer.headers.get("Retry-After")) || 0);
}

/** The JSON that is found at an address. */
export async function json<T>(address: string, init: RequestInit = {}): Promise<T> {
  const answer = await ask(address, init);
  return read(answer.json() as Promise<T>);
}

/** The bytes that are found at an address. */
export async function bytes(address: string): Promise<ArrayBuffer> {
  const answer = await ask(address);
  return read(answer.arrayBuffer());
}

/** What a person is told of anything that was thrown. */
export function sentence(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

async function read<T>(body: Promise<T>): Promise<T> {
  try {
    return await body;
  } catch {
    throw new Sentence(GONE); // the connection ended in the middle
  }
}

async function said(answer: Response): Promise<string> {
  const text = (await answer.text().catch(() => "")).trim();
  if (answer.headers.get("Content-Type")?.includes("json")) {
    try {
      const problem = JSON.parse(text) as { detail?: unknown; title?: unknown };
      for (const part of [problem.detail, problem.title]) if (typeof part === "string" && part) return asSentence(part);
    } catch {
      // not what it says it is
    }
  } else if (text && text.length < 1000 && !text.startsWith("<")) return asSentence(text);
  return `The server answered ${answer.status} ${answer.statusText}.`;
}

function asSentence(text: string): string {
  const first = /^[a-z]+\s/.test(text) ? text.charAt(0).toUpperCase() : text.charAt(0); // not of a file's name
  return first + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}
