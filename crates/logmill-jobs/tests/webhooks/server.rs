//! A small HTTP server: it answers as it was told, and notes what it was asked.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What the server got.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) line: String,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers
            .find(|(of, _)| of == name)
            .map(|(_, value)| &value[..])
    }

    #[track_caller]
    pub(crate) fn id(&self) -> &str {
        self.header("webhook-id").unwrap()
    }
}

/// What the server does after a request.
pub(crate) enum Answer {
    /// Sends these bytes, and closes the connection.
    Bytes(String),
    /// Closes the connection.
    Close,
    /// Keeps the connection open, and says nothing more than this.
    Stall(String),
}

#[derive(Default)]
struct Shared {
    answers: Mutex<VecDeque<Answer>>,
    seen: Mutex<Vec<Request>>,
    /// How many connections there were.
    connections: Mutex<usize>,
    /// Connections without an answer.
    silent: Mutex<Vec<TcpStream>>,
}

/// It answers with 204 if it was told nothing else, and keeps the connection then. Its threads end with
/// the process at the latest.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::<Shared>::default();
        let server = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, server) = (stream.unwrap(), Arc::clone(&server));
                *server.connections.lock().unwrap() += 1;
                // What is no request, such as the begin of TLS, ends the connection.
                std::thread::spawn(move || while serve(&stream, &server).is_ok() {});
            }
        });
        Self { address, shared }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Has the next request that has no answer yet get this one.
    pub(crate) fn then(&self, answer: Answer) -> &Self {
        self.shared.answers.lock().unwrap().push_back(answer);
        self
    }

    /// The same, with a status, headers that end their lines, and a body.
    pub(crate) fn answer(&self, status: &str, headers: &str, body: &str) -> &Self {
        let length = body.len();
        let head =
            format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n");
        self.then(Answer::Bytes(format!("{head}{headers}\r\n{body}")))
    }

    pub(crate) fn connections(&self) -> usize {
        *self.shared.connections.lock().unwrap()
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// The only request so far.
    #[track_caller]
    pub(crate) fn request(&self) -> Request {
        let [request] = &self.requests()[..] else {
            panic!("{:?}", self.requests());
        };
        request.clone()
    }
}

/// Answers a request. An error ends the connection.
fn serve(mut stream: &TcpStream, shared: &Shared) -> std::io::Result<()> {
    let request = read(&mut BufReader::new(stream))?;
    shared.seen.lock().unwrap().push(request);
    let answer = shared.answers.lock().unwrap().pop_front();
    match answer {
        None => stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n"),
        Some(Answer::Bytes(bytes)) => {
            stream.write_all(bytes.as_bytes())?;
            Err(ErrorKind::ConnectionAborted.into())
        }
        Some(Answer::Close) => Err(ErrorKind::ConnectionAborted.into()),
        Some(Answer::Stall(bytes)) => {
            stream.write_all(bytes.as_bytes())?;
            shared.silent.lock().unwrap().push(stream.try_clone()?);
            Err(ErrorKind::ConnectionAborted.into())
        }
    }
}

fn read(reader: &mut impl BufRead) -> std::io::Result<Request> {
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        Ok::<_, std::io::Error>(line.trim_end().to_owned())
    };
    let first = line()?;
    if first.is_empty() {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    let mut headers = Vec::new();
    let mut length = 0;
    loop {
        let header = line()?;
        let Some((name, value)) = header.split_once(':') else {
            break;
        };
        let (name, value) = (name.to_ascii_lowercase(), value.trim().to_owned());
        if name == "content-length" {
            length = value.parse().unwrap();
        }
        headers.push((name, value));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Request {
        line: first,
        headers,
        body,
    })
}
